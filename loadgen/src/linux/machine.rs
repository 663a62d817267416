//! The virtual machine of a guest that boots Linux: what of a PC a kernel needs, most of it in KVM, and a serial line.

use std::fs::File;
use std::iter::repeat;
use std::ptr::NonNull;
use std::time::Instant;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use super::console::{Console, Ready};
use super::{LinuxPlan, acpi, boot, cpu};
use crate::guest::{self, of_io, of_kvm};
use crate::record::{Failure, Step, VcpuPage};
use crate::shared;

/// Ports and interrupt of the first serial line, ttyS0.
const COM1: u16 = 0x3f8;
const COM1_END: u16 = COM1 + 7;
const COM1_IRQ: u32 = 4;
/// The keyboard controller's command and status port. There is none, which its status says: all ones, but for the bit
/// that would make a kernel wait that is about to reset the machine through it (kb_wait of arch/x86/kernel/reboot.c).
const KEYBOARD: u16 = 0x64;
const KEYBOARD_NONE: u8 = !2;
const KEYBOARD_RESET: u8 = 0xfe;
const PM1_ENABLE_END: u16 = acpi::PM1_CONTROL - 1;
const PM1_END: u16 = acpi::PM1_CONTROL + 1;
/// What nobody answers reads as all ones.
const NOBODY: u8 = 0xff;

/// Ready to run.
pub(crate) struct Machine {
    vcpu: VcpuFd,
    vm: VmFd,
    /// Where its console is kept.
    file: Option<File>,
    /// What `vm` has for memory.
    _memory: GuestMemoryMmap,
}

/// Raises the interrupt of the serial line, for a moment.
struct Irq<'a>(&'a VmFd);

impl Trigger for Irq<'_> {
    type E = kvm_ioctls::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.set_irq_line(COM1_IRQ, true)?;
        self.0.set_irq_line(COM1_IRQ, false)
    }
}

impl Machine {
    /// That of the guest with this number, counted from 0.
    pub(crate) fn create(kvm: &Kvm, plan: &LinuxPlan, number: u32) -> Result<Self, Failure> {
        let file = plan.linux.console_file(number);
        let file = file.map(File::create).transpose().map_err(of_io(Step::OpenConsole))?;
        let vm = guest::create_vm(kvm)?;
        vm.create_irq_chip().map_err(of_kvm(Step::CreateIrqchip))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(of_kvm(Step::CreatePit))?;
        let memory = boot::memory(plan.memory_bytes)
            .map_err(|_| of_io(Step::MapMemory)(std::io::Error::last_os_error()))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let Some(start) = NonNull::new(region.as_ptr()) else { continue };
            if plan.mem_merge {
                shared::allow_merging(start, region.size()).map_err(of_io(Step::AllowMerging))?;
            }
            guest::set_slot(&vm, slot, region.start_addr().0, region.size() as u64, start)?;
        }
        let entry = boot::load(&memory, plan.memory_bytes, &plan.linux)
            .map_err(|_| Failure::errno(Step::LoadKernel, libc::EINVAL))?;
        let vcpu = vm.create_vcpu(0).map_err(of_kvm(Step::CreateVcpu))?;
        vcpu.set_cpuid2(&plan.cpuid).map_err(of_kvm(Step::SetCpuid))?;
        let set_registers = of_kvm(Step::SetRegisters);
        let initial = vcpu.get_sregs().map_err(&set_registers)?;
        vcpu.set_sregs(&cpu::sregs(initial)).map_err(&set_registers)?;
        vcpu.set_regs(&cpu::regs(entry)).map_err(&set_registers)?;
        Ok(Self { vcpu, vm, file, _memory: memory })
    }

    /// Runs the guest until it ends, which it is not to do by itself; returns how. `place` is where the end of its console
    /// is kept, and `page` where it is told when it has become ready.
    pub(crate) fn run(self, plan: &LinuxPlan, place: u32, page: &VcpuPage) -> Failure {
        let Self { mut vcpu, vm, file, .. } = self;
        let console = Console {
            file,
            tail: plan.tails.begin(place),
            page,
            ready: Ready::new(&plan.linux.ready),
            started: Instant::now(),
        };
        let mut ports = Ports { serial: Serial::new(Irq(&vm), console), events: [0; 2] };
        loop {
            let went_well = match vcpu.run() {
                Ok(VcpuExit::IoOut(port, data)) => ports.write(port, data),
                Ok(VcpuExit::IoIn(port, data)) => {
                    ports.read(port, data);
                    Ok(())
                }
                Ok(VcpuExit::MmioRead(_, data)) => {
                    data.fill(NOBODY);
                    Ok(())
                }
                Ok(VcpuExit::MmioWrite(..) | VcpuExit::Intr) => Ok(()),
                Ok(_) => Err(Failure::exit(vcpu.get_kvm_run().exit_reason)),
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Ok(()),
                Err(e) => Err(Failure::errno(Step::Run, e.errno())),
            };
            if let Err(failure) = went_well {
                return failure;
            }
        }
    }
}

/// What answers at ports, of what KVM does not have itself.
struct Ports<'a> {
    serial: Serial<Irq<'a>, NoEvents, Console<'a>>,
    /// ACPI events that are enabled: none ever comes, but kernels look whether they could enable them.
    events: [u8; 2],
}

impl Ports<'_> {
    /// Fails if it is the guest's end.
    fn write(&mut self, port: u16, data: &[u8]) -> Result<(), Failure> {
        match (port, data) {
            (COM1..=COM1_END, _) => {
                let register = (port - COM1) as u8;
                data.iter()
                    .try_for_each(|byte| self.serial.write(register, *byte))
                    .map_err(of_serial)
            }
            (KEYBOARD, [KEYBOARD_RESET]) => Err(Failure::wanted(Step::Reset)),
            (acpi::RESET_CONTROL, [value]) if value & acpi::RESET_NOW == acpi::RESET_NOW => {
                Err(Failure::wanted(Step::Reset))
            }
            (acpi::PM1_CONTROL, [_, acpi::SWITCH_OFF]) => Err(Failure::wanted(Step::SwitchOff)),
            (acpi::PM1_ENABLE..=PM1_ENABLE_END, _) => {
                let from = usize::from(port - acpi::PM1_ENABLE);
                self.events.iter_mut().skip(from).zip(data).for_each(|(to, byte)| *to = *byte);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn read(&mut self, port: u16, data: &mut [u8]) {
        match port {
            COM1..=COM1_END => data.fill_with(|| self.serial.read((port - COM1) as u8)),
            KEYBOARD => data.fill(KEYBOARD_NONE),
            acpi::PM1_ENABLE..=PM1_ENABLE_END => {
                let from = usize::from(port - acpi::PM1_ENABLE);
                let bytes = self.events.iter().skip(from).chain(repeat(&0));
                data.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
            }
            acpi::PM1_STATUS..=PM1_END => data.fill(0),
            _ => data.fill(NOBODY),
        }
    }
}

/// What the serial line could not do.
fn of_serial(e: vm_superio::serial::Error<kvm_ioctls::Error>) -> Failure {
    use vm_superio::serial::Error;
    match e {
        Error::IOError(e) => of_io(Step::WriteConsole)(e),
        Error::Trigger(e) => of_kvm(Step::RaiseInterrupt)(e),
        // It has no input.
        Error::FullFifo => Failure::errno(Step::WriteConsole, libc::ENOBUFS),
    }
}
