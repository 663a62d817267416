complete -c vcpulag -s d -l duration -d 'End after so many seconds' -r
complete -c vcpulag -l csv -d 'CSV: a summary per row, or the histogram\'s buckets' -r -f -a "summary\t'One row of figures per interval and key'
buckets\t'One row per non-empty bucket'"
complete -c vcpulag -l hdr -d 'Write histograms to an HdrHistogram interval log as well' -r -F
complete -c vcpulag -l openmetrics -d 'Write metrics for Prometheus as well, anew after each interval; - is standard output, instead' -r -F
complete -c vcpulag -l max-series -d 'Metrics: fold rows beyond so many series into one that is labelled other' -r
complete -c vcpulag -s p -l pid -d 'Only threads of this process' -r
complete -c vcpulag -s t -l tid -d 'Only this thread' -r
complete -c vcpulag -s c -l cgroup -d 'Only tasks in this cgroup (v2) and below' -r -F
complete -c vcpulag -l vm -d 'Only vCPUs of this VM' -r
complete -c vcpulag -l vcpu -d 'Only this vCPU of each VM, by the kernel\'s vcpu_id' -r
complete -c vcpulag -l by -d 'A row for each vCPU (the default), or for each VM; metrics have such rows only if asked for' -r -f -a "vcpu\t'vCPU, as name/vcpu_id, or name/? if its number is not known'
vm\t'KVM guest, with all of its vCPUs that are wanted: shares are of their time together, rates those of all of them'"
complete -c vcpulag -l top -d 'Show so many rows' -r
complete -c vcpulag -l late -d 'A vCPU is late if it waits more than this share of its time' -r
complete -c vcpulag -l slower -d 'Print each wait that takes longer, as it ends, and no table' -r
complete -c vcpulag -l stacks -d 'Where in the kernel vCPUs were blocked, folded, and for how many microseconds: the worst ones, and no table' -r
complete -c vcpulag -s T -l timestamp -d 'Print the time with each output'
complete -c vcpulag -l json -d 'JSON: one object a line'
complete -c vcpulag -l strict -d 'Exit with status 4 if events were lost'
complete -c vcpulag -s v -l verbose -d 'Show libbpf\'s messages, on standard error'
complete -c vcpulag -l culprits -d 'Who made whom wait, and for how long, instead of rows'
complete -c vcpulag -l histogram -d 'A picture of each row\'s waits as well'
complete -c vcpulag -s m -l milliseconds -d 'Pictures in milliseconds instead of microseconds'
complete -c vcpulag -l heatmap -d 'A heat map of all their waits: a line for each interval, latency across, in colour on a terminal'
complete -c vcpulag -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vcpulag -s V -l version -d 'Print version'
