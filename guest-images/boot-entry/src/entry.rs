//! One way to boot, as a configuration on the disk names it.

/// Which file system a path belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The one that the configuration lies in.
    Same,
    /// The one with this UUID, in lower case.
    Uuid(String),
    /// The one with this label.
    Label(String),
    /// The partition of this number.
    Partition(u32),
}

/// A boot entry. Paths are absolute in their file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The kernel.
    pub kernel: String,
    /// Initial RAM disks, to be loaded one after the other.
    pub initrds: Vec<String>,
    /// The kernel's command line.
    pub options: String,
    /// The file system of kernel and initial RAM disks.
    pub place: Place,
}

/// Resolves `path` against `folder` (absolute) without leaving the root.
pub fn absolute(folder: &str, path: &str) -> String {
    let base = if path.starts_with('/') { "" } else { folder };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(absolute("/boot/extlinux", "../vmlinuz"), "/boot/vmlinuz");
        assert_eq!(absolute("/boot", "/vmlinuz"), "/vmlinuz");
        assert_eq!(absolute("/boot", "../../../etc/./passwd"), "/etc/passwd");
        assert_eq!(absolute("", "."), "/");
    }
}
