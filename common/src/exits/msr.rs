//! Model-specific registers by number. A name is that of the kernel's header, without `MSR_` before it: msr-index.h for
//! most, perf_event.h and mtrr.h for `ARCH_PERFMON_EVENTSEL` and `MTRRphys` (arch/x86/include/asm), kvm_para.h for
//! KVM's own (arch/x86/include/uapi/asm), hvgdk_mini.h for Hyper-V's (include/hyperv). An x2APIC register is `X2APIC_`
//! and what `kvm_apic` calls it, from apicdef.h.

/// Single ones, by number.
const SINGLE: &[(u32, &str)] = &[
    (0x000, "IA32_P5_MC_ADDR"),
    (0x001, "IA32_P5_MC_TYPE"),
    (0x010, "IA32_TSC"),
    (0x011, "KVM_WALL_CLOCK"),
    (0x012, "KVM_SYSTEM_TIME"),
    (0x017, "IA32_PLATFORM_ID"),
    (0x01b, "IA32_APICBASE"),
    (0x02a, "IA32_EBL_CR_POWERON"),
    (0x02c, "EBC_FREQUENCY_ID"),
    (0x033, "TEST_CTRL"),
    (0x034, "SMI_COUNT"),
    (0x03a, "IA32_FEAT_CTL"),
    (0x03b, "IA32_TSC_ADJUST"),
    (0x048, "IA32_SPEC_CTRL"),
    (0x049, "IA32_PRED_CMD"),
    (0x04e, "PPIN_CTL"),
    (0x04f, "PPIN"),
    (0x079, "IA32_UCODE_WRITE"),
    (0x08b, "IA32_UCODE_REV"),
    (0x09b, "IA32_SMM_MONITOR_CTL"),
    (0x09e, "IA32_SMBASE"),
    (0x0cd, "FSB_FREQ"),
    (0x0ce, "PLATFORM_INFO"),
    (0x0cf, "IA32_CORE_CAPS"),
    (0x0e1, "IA32_UMWAIT_CONTROL"),
    (0x0e2, "PKG_CST_CONFIG_CONTROL"),
    (0x0e7, "IA32_MPERF"),
    (0x0e8, "IA32_APERF"),
    (0x0fe, "MTRRcap"),
    (0x10a, "IA32_ARCH_CAPABILITIES"),
    (0x10b, "IA32_FLUSH_CMD"),
    (0x11e, "IA32_BBL_CR_CTL3"),
    (0x122, "IA32_TSX_CTRL"),
    (0x123, "IA32_MCU_OPT_CTRL"),
    (0x140, "MISC_FEATURES_ENABLES"),
    (0x174, "IA32_SYSENTER_CS"),
    (0x175, "IA32_SYSENTER_ESP"),
    (0x176, "IA32_SYSENTER_EIP"),
    (0x179, "IA32_MCG_CAP"),
    (0x17a, "IA32_MCG_STATUS"),
    (0x17b, "IA32_MCG_CTL"),
    (0x198, "IA32_PERF_STATUS"),
    (0x199, "IA32_PERF_CTL"),
    (0x19a, "IA32_THERM_CONTROL"),
    (0x19b, "IA32_THERM_INTERRUPT"),
    (0x19c, "IA32_THERM_STATUS"),
    (0x1a0, "IA32_MISC_ENABLE"),
    (0x1a2, "IA32_TEMPERATURE_TARGET"),
    (0x1a4, "MISC_FEATURE_CONTROL"),
    (0x1a6, "OFFCORE_RSP_0"),
    (0x1a7, "OFFCORE_RSP_1"),
    (0x1aa, "MISC_PWR_MGMT"),
    (0x1ad, "TURBO_RATIO_LIMIT"),
    (0x1b0, "IA32_ENERGY_PERF_BIAS"),
    (0x1b1, "IA32_PACKAGE_THERM_STATUS"),
    (0x1b2, "IA32_PACKAGE_THERM_INTERRUPT"),
    (0x1c4, "IA32_XFD"),
    (0x1c5, "IA32_XFD_ERR"),
    (0x1c8, "LBR_SELECT"),
    (0x1c9, "LBR_TOS"),
    (0x1d9, "IA32_DEBUGCTLMSR"),
    (0x1db, "IA32_LASTBRANCHFROMIP"),
    (0x1dc, "IA32_LASTBRANCHTOIP"),
    (0x1dd, "IA32_LASTINTFROMIP"),
    (0x1de, "IA32_LASTINTTOIP"),
    (0x1fc, "IA32_POWER_CTL"),
    (0x250, "MTRRfix64K_00000"),
    (0x258, "MTRRfix16K_80000"),
    (0x259, "MTRRfix16K_A0000"),
    (0x268, "MTRRfix4K_C0000"),
    (0x269, "MTRRfix4K_C8000"),
    (0x26a, "MTRRfix4K_D0000"),
    (0x26b, "MTRRfix4K_D8000"),
    (0x26c, "MTRRfix4K_E0000"),
    (0x26d, "MTRRfix4K_E8000"),
    (0x26e, "MTRRfix4K_F0000"),
    (0x26f, "MTRRfix4K_F8000"),
    (0x277, "IA32_CR_PAT"),
    (0x2ff, "MTRRdefType"),
    (0x345, "IA32_PERF_CAPABILITIES"),
    (0x38d, "CORE_PERF_FIXED_CTR_CTRL"),
    (0x38e, "CORE_PERF_GLOBAL_STATUS"),
    (0x38f, "CORE_PERF_GLOBAL_CTRL"),
    (0x390, "CORE_PERF_GLOBAL_OVF_CTRL"),
    (0x3f1, "IA32_PEBS_ENABLE"),
    (0x3f2, "PEBS_DATA_CFG"),
    (0x480, "IA32_VMX_BASIC"),
    (0x481, "IA32_VMX_PINBASED_CTLS"),
    (0x482, "IA32_VMX_PROCBASED_CTLS"),
    (0x483, "IA32_VMX_EXIT_CTLS"),
    (0x484, "IA32_VMX_ENTRY_CTLS"),
    (0x485, "IA32_VMX_MISC"),
    (0x486, "IA32_VMX_CR0_FIXED0"),
    (0x487, "IA32_VMX_CR0_FIXED1"),
    (0x488, "IA32_VMX_CR4_FIXED0"),
    (0x489, "IA32_VMX_CR4_FIXED1"),
    (0x48a, "IA32_VMX_VMCS_ENUM"),
    (0x48b, "IA32_VMX_PROCBASED_CTLS2"),
    (0x48c, "IA32_VMX_EPT_VPID_CAP"),
    (0x48d, "IA32_VMX_TRUE_PINBASED_CTLS"),
    (0x48e, "IA32_VMX_TRUE_PROCBASED_CTLS"),
    (0x48f, "IA32_VMX_TRUE_EXIT_CTLS"),
    (0x490, "IA32_VMX_TRUE_ENTRY_CTLS"),
    (0x491, "IA32_VMX_VMFUNC"),
    (0x4d0, "IA32_MCG_EXT_CTL"),
    (0x570, "IA32_RTIT_CTL"),
    (0x571, "IA32_RTIT_STATUS"),
    (0x600, "IA32_DS_AREA"),
    (0x606, "RAPL_POWER_UNIT"),
    (0x610, "PKG_POWER_LIMIT"),
    (0x611, "PKG_ENERGY_STATUS"),
    (0x614, "PKG_POWER_INFO"),
    (0x619, "DRAM_ENERGY_STATUS"),
    (0x639, "PP0_ENERGY_STATUS"),
    (0x641, "PP1_ENERGY_STATUS"),
    (0x64e, "PPERF"),
    (0x6a0, "IA32_U_CET"),
    (0x6a2, "IA32_S_CET"),
    (0x6a4, "IA32_PL0_SSP"),
    (0x6a5, "IA32_PL1_SSP"),
    (0x6a6, "IA32_PL2_SSP"),
    (0x6a7, "IA32_PL3_SSP"),
    (0x6a8, "IA32_INT_SSP_TAB"),
    (0x6e0, "IA32_TSC_DEADLINE"),
    (0x770, "PM_ENABLE"),
    (0x771, "HWP_CAPABILITIES"),
    (0x774, "HWP_REQUEST"),
    (0x777, "HWP_STATUS"),
    (0x802, "X2APIC_ID"),
    (0x803, "X2APIC_LVR"),
    (0x808, "X2APIC_TASKPRI"),
    (0x80a, "X2APIC_PROCPRI"),
    (0x80b, "X2APIC_EOI"),
    (0x80d, "X2APIC_LDR"),
    (0x80f, "X2APIC_SPIV"),
    (0x828, "X2APIC_ESR"),
    (0x82f, "X2APIC_LVTCMCI"),
    (0x830, "X2APIC_ICR"),
    (0x832, "X2APIC_LVTT"),
    (0x833, "X2APIC_LVTTHMR"),
    (0x834, "X2APIC_LVTPC"),
    (0x835, "X2APIC_LVT0"),
    (0x836, "X2APIC_LVT1"),
    (0x837, "X2APIC_LVTERR"),
    (0x838, "X2APIC_TMICT"),
    (0x839, "X2APIC_TMCCT"),
    (0x83e, "X2APIC_TDCR"),
    (0x83f, "X2APIC_SELF_IPI"),
    (0xd90, "IA32_BNDCFGS"),
    (0xd93, "IA32_PASID"),
    (0xda0, "IA32_XSS"),
    (0x4000_0000, "HV_X64_MSR_GUEST_OS_ID"),
    (0x4000_0001, "HV_X64_MSR_HYPERCALL"),
    (0x4000_0002, "HV_X64_MSR_VP_INDEX"),
    (0x4000_0003, "HV_X64_MSR_RESET"),
    (0x4000_0010, "HV_X64_MSR_VP_RUNTIME"),
    (0x4000_0020, "HV_X64_MSR_TIME_REF_COUNT"),
    (0x4000_0021, "HV_X64_MSR_REFERENCE_TSC"),
    (0x4000_0022, "HV_X64_MSR_TSC_FREQUENCY"),
    (0x4000_0023, "HV_X64_MSR_APIC_FREQUENCY"),
    (0x4000_0070, "HV_X64_MSR_EOI"),
    (0x4000_0071, "HV_X64_MSR_ICR"),
    (0x4000_0072, "HV_X64_MSR_TPR"),
    (0x4000_0073, "HV_X64_MSR_VP_ASSIST_PAGE"),
    (0x4000_0080, "HV_X64_MSR_SCONTROL"),
    (0x4000_0081, "HV_X64_MSR_SVERSION"),
    (0x4000_0082, "HV_X64_MSR_SIEFP"),
    (0x4000_0083, "HV_X64_MSR_SIMP"),
    (0x4000_0084, "HV_X64_MSR_EOM"),
    (0x4000_00f0, "HV_X64_MSR_GUEST_IDLE"),
    (0x4000_0105, "HV_X64_MSR_CRASH_CTL"),
    (0x4000_0106, "HV_X64_MSR_REENLIGHTENMENT_CONTROL"),
    (0x4000_0107, "HV_X64_MSR_TSC_EMULATION_CONTROL"),
    (0x4000_0108, "HV_X64_MSR_TSC_EMULATION_STATUS"),
    (0x4000_0118, "HV_X64_MSR_TSC_INVARIANT_CONTROL"),
    (0x4b56_4d00, "KVM_WALL_CLOCK_NEW"),
    (0x4b56_4d01, "KVM_SYSTEM_TIME_NEW"),
    (0x4b56_4d02, "KVM_ASYNC_PF_EN"),
    (0x4b56_4d03, "KVM_STEAL_TIME"),
    (0x4b56_4d04, "KVM_PV_EOI_EN"),
    (0x4b56_4d05, "KVM_POLL_CONTROL"),
    (0x4b56_4d06, "KVM_ASYNC_PF_INT"),
    (0x4b56_4d07, "KVM_ASYNC_PF_ACK"),
    (0x4b56_4d08, "KVM_MIGRATION_CONTROL"),
    (0xc000_0080, "EFER"),
    (0xc000_0081, "STAR"),
    (0xc000_0082, "LSTAR"),
    (0xc000_0083, "CSTAR"),
    (0xc000_0084, "SYSCALL_MASK"),
    (0xc000_00e9, "F17H_IRPERF"),
    (0xc000_0100, "FS_BASE"),
    (0xc000_0101, "GS_BASE"),
    (0xc000_0102, "KERNEL_GS_BASE"),
    (0xc000_0103, "TSC_AUX"),
    (0xc000_0104, "AMD64_TSC_RATIO"),
    (0xc000_010e, "AMD64_LBR_SELECT"),
    (0xc000_010f, "AMD_DBG_EXTN_CFG"),
    (0xc000_0300, "AMD64_PERF_CNTR_GLOBAL_STATUS"),
    (0xc000_0301, "AMD64_PERF_CNTR_GLOBAL_CTL"),
    (0xc000_0302, "AMD64_PERF_CNTR_GLOBAL_STATUS_CLR"),
    (0xc001_0010, "AMD64_SYSCFG"),
    (0xc001_0015, "K7_HWCR"),
    (0xc001_001a, "K8_TOP_MEM1"),
    (0xc001_001b, "K7_CLK_CTL"),
    (0xc001_001d, "K8_TOP_MEM2"),
    (0xc001_001f, "AMD64_NB_CFG"),
    (0xc001_0020, "AMD64_PATCH_LOADER"),
    (0xc001_0055, "K8_INT_PENDING_MSG"),
    (0xc001_0058, "FAM10H_MMIO_CONF_BASE"),
    (0xc001_0062, "AMD_PERF_CTL"),
    (0xc001_0063, "AMD_PERF_STATUS"),
    (0xc001_0112, "K8_TSEG_ADDR"),
    (0xc001_0113, "K8_TSEG_MASK"),
    (0xc001_0114, "VM_CR"),
    (0xc001_0115, "VM_IGNNE"),
    (0xc001_0117, "VM_HSAVE_PA"),
    (0xc001_011b, "AMD64_SVM_AVIC_DOORBELL"),
    (0xc001_011f, "AMD64_VIRT_SPEC_CTRL"),
    (0xc001_0130, "AMD64_SEV_ES_GHCB"),
    (0xc001_0131, "AMD64_SEV"),
    (0xc001_0140, "AMD64_OSVW_ID_LENGTH"),
    (0xc001_0141, "AMD64_OSVW_STATUS"),
    (0xc001_0280, "F15H_PTSC"),
    (0xc001_0299, "AMD_RAPL_POWER_UNIT"),
    (0xc001_029a, "AMD_CORE_ENERGY_STATUS"),
    (0xc001_029b, "AMD_PKG_ENERGY_STATUS"),
    (0xc001_02b0, "AMD_CPPC_CAP1"),
    (0xc001_02b1, "AMD_CPPC_ENABLE"),
    (0xc001_02b3, "AMD_CPPC_REQ"),
    (0xc001_1020, "AMD64_LS_CFG"),
    (0xc001_1021, "F15H_IC_CFG"),
    (0xc001_1022, "AMD64_DC_CFG"),
    (0xc001_1029, "AMD64_DE_CFG"),
    (0xc001_102a, "AMD64_BU_CFG2"),
    (0xc001_102c, "F15H_EX_CFG"),
    (0xc001_1030, "AMD64_IBSFETCHCTL"),
    (0xc001_1033, "AMD64_IBSOPCTL"),
    (0xc001_103a, "AMD64_IBSCTL"),
];

/// Registers of one name and a number, which are that many apart.
struct Row {
    first: u32,
    apart: u32,
    names: &'static [&'static str],
}

macro_rules! row {
    ($first:literal, $apart:literal, $before:literal, $after:literal, [$($number:literal)*]) => {
        Row { first: $first, apart: $apart, names: &[$(concat!($before, $number, $after)),*] }
    };
}

macro_rules! row_of_32 {
    ($first:literal, $apart:literal, $before:literal, $after:literal) => {
        row!($first, $apart, $before, $after, [
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        ])
    };
}

const ROWS: &[Row] = &[
    row!(0x0c1, 1, "IA32_PERFCTR", "", [0 1 2 3 4 5 6 7]),
    row!(0x186, 1, "ARCH_PERFMON_EVENTSEL", "", [0 1 2 3 4 5 6 7]),
    row!(0x200, 2, "MTRRphysBase", "", [0 1 2 3 4 5 6 7]),
    row!(0x201, 2, "MTRRphysMask", "", [0 1 2 3 4 5 6 7]),
    row_of_32!(0x280, 1, "IA32_MC", "_CTL2"),
    row!(0x309, 1, "CORE_PERF_FIXED_CTR", "", [0 1 2 3]),
    row_of_32!(0x400, 4, "IA32_MC", "_CTL"),
    row_of_32!(0x401, 4, "IA32_MC", "_STATUS"),
    row_of_32!(0x402, 4, "IA32_MC", "_ADDR"),
    row_of_32!(0x403, 4, "IA32_MC", "_MISC"),
    row!(0x4c1, 1, "IA32_PMC", "", [0 1 2 3 4 5 6 7]),
    row!(0x810, 1, "X2APIC_ISR", "", [0 1 2 3 4 5 6 7]),
    row!(0x818, 1, "X2APIC_TMR", "", [0 1 2 3 4 5 6 7]),
    row!(0x820, 1, "X2APIC_IRR", "", [0 1 2 3 4 5 6 7]),
    row!(0x4000_0090, 1, "HV_X64_MSR_SINT", "", [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]),
    row!(0x4000_00b0, 2, "HV_X64_MSR_STIMER", "_CONFIG", [0 1 2 3]),
    row!(0x4000_00b1, 2, "HV_X64_MSR_STIMER", "_COUNT", [0 1 2 3]),
    row!(0x4000_0100, 1, "HV_X64_MSR_CRASH_P", "", [0 1 2 3 4]),
    row!(0xc001_0000, 1, "K7_EVNTSEL", "", [0 1 2 3]),
    row!(0xc001_0004, 1, "K7_PERFCTR", "", [0 1 2 3]),
    row!(0xc001_0200, 2, "F15H_PERF_CTL", "", [0 1 2 3 4 5]),
    row!(0xc001_0201, 2, "F15H_PERF_CTR", "", [0 1 2 3 4 5]),
];

impl Row {
    fn name(&self, index: u32) -> Option<&'static str> {
        let offset = index.checked_sub(self.first).filter(|offset| offset % self.apart == 0)?;
        self.names.get((offset / self.apart) as usize).copied()
    }
}

/// The name of a model-specific register (field `ecx` of `kvm_msr`). `None` for those that guests rarely exit for.
pub fn msr_name(index: u32) -> Option<&'static str> {
    match SINGLE.binary_search_by_key(&index, |(msr, _)| *msr) {
        Ok(at) => Some(SINGLE[at].1),
        Err(_) => ROWS.iter().find_map(|row| row.name(index)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_has_one_name_and_every_name_one_register() {
        assert!(SINGLE.is_sorted_by(|a, b| a.0 < b.0));
        let mut seen = std::collections::HashMap::new();
        let rows = ROWS.iter().flat_map(|row| {
            let numbers = (row.first..).step_by(row.apart as usize);
            numbers.zip(row.names.iter().copied())
        });
        for (index, name) in SINGLE.iter().copied().chain(rows) {
            assert_eq!(msr_name(index), Some(name));
            assert_eq!(seen.insert(name, index), None, "{name}");
            assert!(!name.starts_with("MSR_"), "{name}");
        }
    }

    #[test]
    fn registers_that_guests_exit_for_have_their_names() {
        for (index, name) in [
            (0x10, "IA32_TSC"),
            (0x48, "IA32_SPEC_CTRL"),
            (0x6e0, "IA32_TSC_DEADLINE"),
            (0x830, "X2APIC_ICR"),
            (0x827, "X2APIC_IRR7"),
            (0x402 + 4 * 31, "IA32_MC31_ADDR"),
            (0x20f, "MTRRphysMask7"),
            (0xc000_0080, "EFER"),
            (0xc001_020b, "F15H_PERF_CTR5"),
            (0x4b56_4d03, "KVM_STEAL_TIME"),
            (0x4000_00b1, "HV_X64_MSR_STIMER0_COUNT"),
        ] {
            assert_eq!(msr_name(index), Some(name));
        }
        assert_eq!(msr_name(0x801), None);
        assert_eq!(msr_name(u32::MAX), None);
    }
}
