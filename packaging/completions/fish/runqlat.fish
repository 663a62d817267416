complete -c runqlat -s d -l duration -d 'End after so many seconds' -r
complete -c runqlat -l csv -d 'CSV: a summary per row, or the histogram\'s buckets' -r -f -a "summary\t'One row of figures per interval and key'
buckets\t'One row per non-empty bucket'"
complete -c runqlat -l hdr -d 'Write histograms to an HdrHistogram interval log as well' -r -F
complete -c runqlat -l openmetrics -d 'Write metrics for Prometheus as well, anew after each interval; - is standard output, instead' -r -F
complete -c runqlat -l max-series -d 'Metrics: fold rows beyond so many series into one that is labelled other' -r
complete -c runqlat -s p -l pid -d 'Only threads of this process' -r
complete -c runqlat -s t -l tid -d 'Only this thread' -r
complete -c runqlat -s c -l cgroup -d 'Only tasks in this cgroup (v2) and below' -r -F
complete -c runqlat -l vm -d 'Only vCPUs of this VM' -r
complete -c runqlat -s C -l cpu -d 'Only waits that end on these CPUs, as in 0-3,8' -r
complete -c runqlat -l by -d 'A histogram for each of these' -r -f -a "process\t'Process, with the name of its main thread'
thread\t'Thread, with its own name'
vm\t'KVM guest: its vCPUs\' threads only, each from the first time it is seen inside a vCPU\'s ioctl'
cpu\t'CPU on which waits end, in the order of numbers'
pidns\t'PID namespace, by its inode number: ls -iL /proc/PID/ns/pid'"
complete -c runqlat -s T -l timestamp -d 'Print the time with each output'
complete -c runqlat -l json -d 'JSON: one object a line'
complete -c runqlat -l strict -d 'Exit with status 4 if events were lost'
complete -c runqlat -s v -l verbose -d 'Show libbpf\'s messages, on standard error'
complete -c runqlat -s m -l milliseconds -d 'Pictures in milliseconds instead of microseconds'
complete -c runqlat -s P -l pids -d 'A histogram per process, as --by process'
complete -c runqlat -s L -l tids -d 'A histogram per thread, as --by thread'
complete -c runqlat -l pidnss -d 'A histogram per PID namespace, as --by pidns'
complete -c runqlat -l heatmap -d 'A heat map: a line for each interval, latency across, in colour on a terminal'
complete -c runqlat -s h -l help -d 'Print help (see more with \'--help\')'
complete -c runqlat -s V -l version -d 'Print version'
