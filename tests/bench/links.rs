//! BPF links on this host, asked for by ID: one system call a link, so that a poll does not disturb who attaches.
//! IDs only grow (idr_alloc_cyclic in the kernel).

use libbpf_rs::libbpf_sys::bpf_link_get_next_id;

/// The IDs of the links made after the one with this ID; after 0: all.
pub fn after(mut id: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        // SAFETY: `next` is valid for the call, which writes one ID to it.
        let result = unsafe {
            let mut next = 0;
            (bpf_link_get_next_id(id, &mut next) == 0).then_some(next)
        };
        id = result?;
        result
    })
}

/// The ID of the link made last, or 0.
pub fn newest() -> u32 {
    after(0).last().unwrap_or(0)
}
