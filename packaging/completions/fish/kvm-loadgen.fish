# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_kvm_loadgen_global_optspecs
    string join \n h/help V/version
end

function __fish_kvm_loadgen_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_kvm_loadgen_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_kvm_loadgen_using_subcommand
    set -l cmd (__fish_kvm_loadgen_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c kvm-loadgen -n "__fish_kvm_loadgen_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_needs_command" -s V -l version -d 'Print version'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_needs_command" -f -a "run" -d 'Runs guests for a time, or until SIGINT, SIGTERM or SIGHUP'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_needs_command" -f -a "check" -d 'Tells what this host can do for guests, and how many it has room for; changes nothing'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_needs_command" -f -a "ramp" -d 'Starts more and more guests until a limit stops it; a row for each step'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l vms -d 'Number of guests' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l vcpus -d 'vCPUs of each guest' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l memory -d 'Memory of each guest: bytes, or a number with K, M or G; none of it exists before it is touched [default: 0; with --linux 128M]' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l workload -d 'What the guests do: spin, idle, idle=HZ, duty=PCT or exits=KIND:COUNT[@RATE],...; and, alone or given beside one of these, memory=SIZE[,duplicate=PCT][,zero=PCT][,rewrite=PCT/s|PCT/signal]' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l mem-merge -d 'Whether KSM may merge the memory of memory=SIZE, or of --linux, as QEMU\'s mem-merge [default: on]' -r -f -a "on\t'It may (MADV_MERGEABLE)'
off\t'It may not'"
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l vmm-sleep -d 'Sleep so many milliseconds before answering an exit to userspace (pio, mmio); fractions are allowed' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l io-thread -d 'One more thread in each guest\'s process, which burns so many per cent of a CPU' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l linux -d 'Boot this kernel, a bzImage or an ELF vmlinux, instead of a workload' -r -F
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l initrd -d 'The initial RAM disk of --linux' -r -F
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l cmdline -d 'The command line of --linux' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l console -d 'Write the serial console of each guest to DIR/NAME.log; DIR is made if need be' -r -F
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l ready -d 'A guest is ready when a line of its console has this in it' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l nice -d 'Nice value of all guests, and of their cgroup as a whole unless it has a --weight' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l sched -d 'Scheduling policy of all guests' -r -f -a "other\t'SCHED_OTHER, that of ordinary tasks'
batch\t'SCHED_BATCH'
idle\t'SCHED_IDLE'"
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l cpus -d 'Bind all guests to these CPUs: 0-3,8' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l numa-node -d 'Bind all guests to the CPUs and the memory of this NUMA node' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l weight -d 'CPU weight of all guests together; an ordinary task has 100 [default: 6]' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l cpu-max -d 'Give each guest a CPU quota, in per cent of one CPU' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l fleet-cpu-max -d 'Give all guests together a CPU quota, in per cent of one CPU' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l memory-max -d 'Kill a guest that needs more memory of the host than this' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l fleet-memory-max -d 'Kill a guest when all together need more memory of the host than this' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l churn -d 'Stop so many guests a second, one after the other, and start another one for each' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l duration -d 'Stop after this many seconds' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l truth -d 'Write what each vCPU did to this file, as JSON lines' -r -F
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l pin -d 'Bind each vCPU to one CPU, in turn: of --cpus, of --numa-node, or of all'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -l json -d 'Print nothing but a summary at the end, as one JSON object'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand check" -l json -d 'Print one JSON object'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand check" -s h -l help -d 'Print help'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l to -d 'Up to so many guests, or as many as there is memory for' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l step -d 'Each step adds so many guests, or makes them so many times as many, beginning with one' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l hold -d 'Seconds to watch each step' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l churn -d 'Meanwhile stop so many guests a second, one after the other, and start another one for each' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l reserve -d 'Leave so much of the host\'s memory [default: a twentieth of what there is, or 1G if that is more]' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l probe-late -d 'Stop when a task of the host comes so late that one time in 100 it is more than so many milliseconds' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l observe -d 'Keep everything in this directory, which is made: the rows, what the tools print, the host\'s facts' -r -F
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l vcpus -d 'vCPUs of each guest' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l memory -d 'Memory of each guest: bytes, or a number with K, M or G; none of it exists before it is touched [default: 0; with --linux 128M]' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l workload -d 'What the guests do: spin, idle, idle=HZ, duty=PCT or exits=KIND:COUNT[@RATE],...; and, alone or given beside one of these, memory=SIZE[,duplicate=PCT][,zero=PCT][,rewrite=PCT/s|PCT/signal]' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l mem-merge -d 'Whether KSM may merge the memory of memory=SIZE, or of --linux, as QEMU\'s mem-merge [default: on]' -r -f -a "on\t'It may (MADV_MERGEABLE)'
off\t'It may not'"
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l vmm-sleep -d 'Sleep so many milliseconds before answering an exit to userspace (pio, mmio); fractions are allowed' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l io-thread -d 'One more thread in each guest\'s process, which burns so many per cent of a CPU' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l linux -d 'Boot this kernel, a bzImage or an ELF vmlinux, instead of a workload' -r -F
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l initrd -d 'The initial RAM disk of --linux' -r -F
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l cmdline -d 'The command line of --linux' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l console -d 'Write the serial console of each guest to DIR/NAME.log; DIR is made if need be' -r -F
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l ready -d 'A guest is ready when a line of its console has this in it' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l nice -d 'Nice value of all guests, and of their cgroup as a whole unless it has a --weight' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l sched -d 'Scheduling policy of all guests' -r -f -a "other\t'SCHED_OTHER, that of ordinary tasks'
batch\t'SCHED_BATCH'
idle\t'SCHED_IDLE'"
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l cpus -d 'Bind all guests to these CPUs: 0-3,8' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l numa-node -d 'Bind all guests to the CPUs and the memory of this NUMA node' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l weight -d 'CPU weight of all guests together; an ordinary task has 100 [default: 6]' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l cpu-max -d 'Give each guest a CPU quota, in per cent of one CPU' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l fleet-cpu-max -d 'Give all guests together a CPU quota, in per cent of one CPU' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l memory-max -d 'Kill a guest that needs more memory of the host than this' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l fleet-memory-max -d 'Kill a guest when all together need more memory of the host than this' -r
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l csv -d 'Rows as CSV'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l json -d 'Rows as JSON, one object a line'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -l pin -d 'Bind each vCPU to one CPU, in turn: of --cpus, of --numa-node, or of all'
complete -c kvm-loadgen -n "__fish_kvm_loadgen_using_subcommand ramp" -s h -l help -d 'Print help (see more with \'--help\')'
