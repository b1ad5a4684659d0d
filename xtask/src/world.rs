//! Which of the three worlds this computer is, for running guests.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

/// What runs guests here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum World {
    /// The processor virtualizes and `/dev/kvm` is open to us.
    Hardware {
        /// Whether a guest gets virtualization itself, so that the whole chain runs at full speed.
        nested: bool,
    },
    /// There is a `/dev/kvm`, but the processor has no virtualization: what is behind it emulates.
    Software,
    /// No KVM that we may use.
    Absent {
        /// Why, and what to do.
        reason: String,
    },
}

/// How QEMU executes the machine that is the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceleration {
    /// Hardware, with nested virtualization for the guests.
    Kvm,
    /// Translation, with AMD's virtualization emulated: slow, and works everywhere.
    Tcg,
}

impl World {
    pub fn detect() -> Self {
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let nested = ["kvm_intel", "kvm_amd"].into_iter().any(|module| {
            let parameter = format!("/sys/module/{module}/parameters/nested");
            fs::read_to_string(parameter).is_ok_and(|value| is_yes(&value))
        });
        let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        classify(
            device.map(|_| ()).map_err(|error| error.kind()),
            virtualizes(&flags),
            nested,
        )
    }

    /// How to run the ROM here.
    pub fn acceleration(&self) -> Acceleration {
        match self {
            Self::Hardware { nested: true } => Acceleration::Kvm,
            _ => Acceleration::Tcg,
        }
    }
}

fn classify(device: Result<(), ErrorKind>, virtualizes: bool, nested: bool) -> World {
    match device {
        Ok(()) if virtualizes => World::Hardware { nested },
        Ok(()) => World::Software,
        Err(ErrorKind::PermissionDenied) => World::Absent {
            reason: "/dev/kvm is closed to this user: add the user to the group `kvm` and log in again".into(),
        },
        Err(_) if virtualizes => World::Absent {
            reason: "the processor can virtualize, but the kernel offers no /dev/kvm: load kvm_intel or kvm_amd".into(),
        },
        Err(_) if Path::new("/sys/hypervisor").exists() => World::Absent {
            reason: "this is itself a virtual machine without nested virtualization".into(),
        },
        Err(_) => World::Absent {
            reason: "the processor shows no virtualization (VT-x or AMD-V): switch it on in the firmware, or in the \
                     hypervisor if this is a virtual machine"
                .into(),
        },
    }
}

/// Whether /proc/cpuinfo lists VT-x or AMD-V.
fn virtualizes(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("flags"))
        .any(|flags| {
            flags
                .split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

fn is_yes(parameter: &str) -> bool {
    matches!(parameter.trim(), "Y" | "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_flags_count() {
        assert!(virtualizes("flags\t\t: fpu vmx sse\n"));
        assert!(virtualizes("model\t: x\nflags : svm\n"));
        assert!(!virtualizes("flags\t: fpu svm_lock\nvmx flags\t: vnmi\n"));
    }

    #[test]
    fn each_world_is_told_apart() {
        assert_eq!(
            classify(Ok(()), true, true),
            World::Hardware { nested: true }
        );
        assert_eq!(classify(Ok(()), false, false), World::Software);
        let closed = classify(Err(ErrorKind::PermissionDenied), true, true);
        assert!(matches!(&closed, World::Absent { reason } if reason.contains("group")));
        assert!(matches!(
            classify(Err(ErrorKind::NotFound), false, false),
            World::Absent { .. }
        ));
    }

    #[test]
    fn hardware_is_used_only_where_guests_get_it_too() {
        assert_eq!(
            World::Hardware { nested: true }.acceleration(),
            Acceleration::Kvm
        );
        assert_eq!(
            World::Hardware { nested: false }.acceleration(),
            Acceleration::Tcg
        );
        assert_eq!(World::Software.acceleration(), Acceleration::Tcg);
    }
}
