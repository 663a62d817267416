complete -c ksmstat -s d -l duration -d 'End after so many seconds' -r
complete -c ksmstat -l csv -d 'CSV: a summary per row, or the histogram\'s buckets' -r -f -a "summary\t'Of the host, or of what --by says'
buckets\t'Of the host\'s histograms: one per non-empty bucket'
processes\t'Of processes, as with --by process'"
complete -c ksmstat -l hdr -d 'Write histograms to an HdrHistogram interval log as well' -r -F
complete -c ksmstat -l openmetrics -d 'Write metrics for Prometheus as well, anew after each interval; - is standard output, instead' -r -F
complete -c ksmstat -l max-series -d 'Metrics: fold rows beyond so many series into one that is labelled other' -r
complete -c ksmstat -l by -d 'A row for each process with mergeable memory, or for each VM' -r -f -a "process\t'Process with mergeable memory'
vm\t'VM, by its name'"
complete -c ksmstat -s p -l pid -d 'Only this process' -r
complete -c ksmstat -l vm -d 'Only this VM' -r
complete -c ksmstat -l sort -d 'What comes first' -r -f -a "merging\t'The most merged pages'
rmap\t'The most pages that KSM keeps a record of'
profit\t'The highest profit'
cost\t'The lowest profit: the bookkeeping takes more than is saved'
merged\t'The most pages merged in the interval'
failed\t'The most failures to merge in the interval'
cow\t'The most writes to merged pages in the interval'"
complete -c ksmstat -l top -d 'Show so many rows' -r
complete -c ksmstat -l stacks -d 'Where merged pages are written to from, folded, and how often: the most frequent, and no table' -r
complete -c ksmstat -s T -l timestamp -d 'Print the time with each output'
complete -c ksmstat -l json -d 'JSON: one object a line'
complete -c ksmstat -l strict -d 'Exit with status 4 if events were lost'
complete -c ksmstat -s v -l verbose -d 'Show libbpf\'s messages, on standard error'
complete -c ksmstat -s S -l state -d 'Print KSM\'s counters and settings once, with their meaning'
complete -c ksmstat -l why -d 'Why is nothing merged, or not more? Looks on for a second, or as long as -d says'
complete -c ksmstat -l cow -d 'COW breaks (writes to merged pages) by process, and how long they take: a probe in all write faults'
complete -c ksmstat -l histogram -d 'Pictures of how long batches, full scans and COW breaks (--cow) take'
complete -c ksmstat -s m -l milliseconds -d 'Pictures in milliseconds instead of microseconds'
complete -c ksmstat -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ksmstat -s V -l version -d 'Print version'
