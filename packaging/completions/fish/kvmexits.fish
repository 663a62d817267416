complete -c kvmexits -s d -l duration -d 'End after so many seconds' -r
complete -c kvmexits -l csv -d 'CSV: a summary per row, or the histogram\'s buckets' -r -f -a "summary\t'One row of figures per interval and key'
buckets\t'One row per non-empty bucket'"
complete -c kvmexits -l hdr -d 'Write histograms to an HdrHistogram interval log as well' -r -F
complete -c kvmexits -l openmetrics -d 'Write metrics for Prometheus as well, anew after each interval; - is standard output, instead' -r -F
complete -c kvmexits -l max-series -d 'Metrics: fold rows beyond so many series into one that is labelled other' -r
complete -c kvmexits -s p -l pid -d 'Only threads of this process' -r
complete -c kvmexits -s t -l tid -d 'Only this thread' -r
complete -c kvmexits -s c -l cgroup -d 'Only tasks in this cgroup (v2) and below' -r -F
complete -c kvmexits -l vm -d 'Only vCPUs of this VM' -r
complete -c kvmexits -l vcpu -d 'Only this vCPU of each VM, by the kernel\'s vcpu_id' -r
complete -c kvmexits -l reason -d 'Only this reason, as the kernel or this tool spells it' -r
complete -c kvmexits -l by -d 'A row for each of these, several with commas between; by reason if nothing is said' -r -f -a "vm\t'KVM guest: the process that runs it, whatever its VMM'
vcpu\t'Its vCPUs: name/vcpu_id, or name/? for an exit that was the first to be seen of its thread'
reason\t'Exit reason'"
complete -c kvmexits -l slower -d 'Print each exit that takes longer, as it ends, and no table' -r
complete -c kvmexits -l stacks -d 'The VMM\'s stacks at exits to userspace, folded: the most expensive ones' -r
complete -c kvmexits -s T -l timestamp -d 'Print the time with each output'
complete -c kvmexits -l json -d 'JSON: one object a line'
complete -c kvmexits -l strict -d 'Exit with status 4 if events were lost'
complete -c kvmexits -s v -l verbose -d 'Show libbpf\'s messages, on standard error'
complete -c kvmexits -l detail -d 'Tell exits of one reason apart: port, address, MSR, hypercall, how a halt ended'
complete -c kvmexits -l histogram -d 'A picture of each row\'s times as well'
complete -c kvmexits -s m -l milliseconds -d 'Pictures in milliseconds instead of microseconds'
complete -c kvmexits -s h -l help -d 'Print help (see more with \'--help\')'
complete -c kvmexits -s V -l version -d 'Print version'
