//! KVM guests whose behaviour is known.
