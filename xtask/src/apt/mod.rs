//! Packages of the distribution, through an apt configuration of our own: its lists and downloads lie in the cache,
//! its mirrors are the machine's, and the machine's own apt stays as it is.

pub mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use self::sources::Source;
use crate::paths::Paths;
use crate::requirements;
use crate::tool;
use crate::ui::Step;

/// The private configuration.
pub struct Apt {
    config: PathBuf,
    log: PathBuf,
    system: System,
    base: Source,
    /// URI of the mirror with security updates.
    security: Option<String>,
    updated: Mutex<bool>,
}

/// The distribution, from /etc/os-release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// `debian`, `ubuntu`.
    pub id: String,
    /// `bookworm`, `noble`.
    pub codename: String,
}

/// A version of a package on offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub version: String,
    /// `bookworm-backports`.
    pub suite: String,
}

impl Apt {
    /// Writes the configuration into the cache. Reads the machine's sources, changes nothing of the machine.
    pub fn open(paths: &Paths) -> Result<Self> {
        let system = System::detect()?;
        let sources = sources::read_all(Path::new("/etc/apt"))?;
        let chosen = sources::choose(&sources, &system)?;
        let folder = paths.cache.join("apt");
        for part in ["lists/partial", "archives/partial", "empty"] {
            let path = folder.join(part);
            fs::create_dir_all(&path)
                .with_context(|| format!("Could not create {}", path.display()))?;
        }
        let list = folder.join("daruma.sources");
        write(&list, &sources::to_deb822(&chosen.all))?;
        let config = folder.join("apt.conf");
        let machines_own = tool::output(Command::new("apt-config").arg("dump"))
            .context("Could not read apt's configuration; only Debian and Ubuntu are supported")?;
        write(&config, &configuration(&folder, &list, &machines_own))?;
        Ok(Self {
            config,
            log: paths.log("apt"),
            security: chosen.security(&system.codename),
            system,
            base: chosen.base,
            updated: Mutex::new(false),
        })
    }

    /// Lines of a sources.list for a Debian root file system of release `suite`, and the keyring that signs them; none on a
    /// machine that is no Debian.
    pub fn debian_sources(&self, suite: &str) -> (Vec<String>, Option<PathBuf>) {
        if self.system.id != "debian" {
            return (Vec::new(), None);
        }
        let mut lines = vec![
            format!("deb {} {suite} main", self.base.uri),
            format!("deb {} {suite}-updates main", self.base.uri),
        ];
        lines.extend(
            self.security
                .as_ref()
                .map(|uri| format!("deb {uri} {suite}-security main")),
        );
        (lines, self.base.keyring().map(PathBuf::from))
    }

    /// Fetches the package lists, once in the life of this process.
    pub fn update(&self, step: &Step) -> Result<()> {
        let mut updated = self
            .updated
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *updated {
            return Ok(());
        }
        step.set("fetching package lists");
        let mut command = self.apt_get();
        tool::run(command.arg("update"), &self.log, |_| {})
            .context("Could not fetch the package lists: is the network up?")?;
        *updated = true;
        Ok(())
    }

    /// Every version of `package` that the mirrors offer, newest first.
    pub fn offers(&self, package: &str) -> Result<Vec<Offer>> {
        Ok(parse_madison(&tool::output(
            self.command("apt-cache").args(["madison", package]),
        )?))
    }

    /// Names of packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = tool::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Downloads a package into `folder`, which must be empty, and returns the file.
    pub fn download(&self, package: &str, version: Option<&str>, folder: &Path) -> Result<PathBuf> {
        let wanted = version.map_or_else(
            || package.to_owned(),
            |version| format!("{package}={version}"),
        );
        let mut command = self.apt_get();
        tool::run(
            command.args(["download", &wanted]).current_dir(folder),
            &self.log,
            |_| {},
        )?;
        let files =
            fs::read_dir(folder).with_context(|| format!("Could not read {}", folder.display()))?;
        files
            .flatten()
            .map(|file| file.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| {
                format!(
                    "apt-get download {wanted} left no package in {}",
                    folder.display()
                )
            })
    }

    /// Whether `packages` could be installed as they are on offer.
    pub fn can_install(&self, packages: &[&str], suite: Option<&str>) -> bool {
        let mut command = self.apt_get();
        install_arguments(command.arg("--simulate"), packages, suite);
        tool::output(&mut command).is_ok()
    }

    /// Installs `packages`, with sudo where needed.
    pub fn install(&self, packages: &[&str], suite: Option<&str>, step: &Step) -> Result<()> {
        let mut command = if requirements::is_root() {
            self.apt_get()
        } else {
            // sudo forgets the environment.
            let mut command = Command::new("sudo");
            command.args(["env", "DEBIAN_FRONTEND=noninteractive"]);
            command
                .arg(format!("APT_CONFIG={}", self.config.display()))
                .arg("apt-get");
            command
        };
        // What is downloaded for the machine belongs to the machine, not to a user's cache.
        for option in [
            "Dir::Cache=/var/cache/apt",
            "Dir::Cache::pkgcache=",
            "Dir::Cache::srcpkgcache=",
            "DPkg::Lock::Timeout=300",
            "APT::Keep-Downloaded-Packages=false",
        ] {
            command.args(["-o", option]);
        }
        install_arguments(&mut command, packages, suite);
        tool::run(&mut command, &self.log, |line| {
            if let Some(detail) = install_progress(line) {
                step.set(detail);
            }
        })
    }

    /// The installed version of each installed package that is built from the same source as `package`.
    pub fn installed_siblings(&self, package: &str) -> Result<Vec<(String, String)>> {
        let shown =
            tool::output(
                self.command("apt-cache")
                    .args(["show", "--no-all-versions", package]),
            )?;
        let source = source_package(&shown).unwrap_or(package).to_owned();
        let format = "${db:Status-Abbrev}\t${source:Package}\t${Package}\t${Version}\n";
        let installed =
            tool::output(Command::new("dpkg-query").args(["--show", "--showformat", format]))?;
        Ok(siblings(&installed, &source))
    }

    fn apt_get(&self) -> Command {
        let mut command = self.command("apt-get");
        command.args(["--quiet", "--assume-yes"]);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config);
        command
    }
}

impl System {
    fn detect() -> Result<Self> {
        let text =
            fs::read_to_string("/etc/os-release").context("Could not read /etc/os-release")?;
        Self::parse(&text).context(
            "This is neither Debian nor Ubuntu: install what `cargo xtask doctor` lists by other means",
        )
    }

    fn parse(os_release: &str) -> Option<Self> {
        let value = |key: &str| {
            let line = os_release
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
            Some(line.trim().trim_matches(['"', '\'']).to_owned())
        };
        let id = value("ID")?;
        let codename = value("VERSION_CODENAME")?;
        matches!(id.as_str(), "debian" | "ubuntu").then_some(Self { id, codename })
    }
}

fn install_arguments(command: &mut Command, packages: &[&str], suite: Option<&str>) {
    if let Some(suite) = suite {
        command.args(["--target-release", suite]);
    }
    command
        .args(["install", "--no-install-recommends"])
        .args(packages);
}

/// What a line of apt-get's output says about how far it is.
fn install_progress(line: &str) -> Option<String> {
    let word = |index| line.split_whitespace().nth(index);
    match word(0)? {
        "Unpacking" => Some(format!("unpacking {}", word(1)?)),
        "Setting" => Some(format!("setting up {}", word(2)?)),
        // Get:7 http://mirror/debian bookworm/main amd64 make amd64 4.3 [396 kB]
        get if get.starts_with("Get:") => Some(format!("downloading {}", word(4)?)),
        _ => None,
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("Could not write {}", path.display()))
}

/// The private configuration: our folders, and how the machine reaches its mirrors (proxies, checks of dates).
///
/// The machine's hooks (what to do after an update or an installation) are not taken over: they are about its own lists.
fn configuration(folder: &Path, list: &Path, machines_own: &str) -> String {
    let folder = folder.display();
    let mut text = format!(
        "Dir::State::Lists \"{folder}/lists\";\n\
         Dir::Cache \"{folder}\";\n\
         Dir::Cache::pkgcache \"pkgcache.bin\";\n\
         Dir::Cache::srcpkgcache \"srcpkgcache.bin\";\n\
         Dir::Etc::SourceList \"{}\";\n\
         Dir::Etc::SourceParts \"-\";\n\
         Dir::Etc::Main \"/dev/null\";\n\
         Dir::Etc::Parts \"{folder}/empty\";\n\
         Dir::Etc::Preferences \"/dev/null\";\n\
         Dir::Etc::PreferencesParts \"{folder}/empty\";\n\
         // The user that apt downloads as cannot enter a home folder.\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n",
        list.display()
    );
    let wanted = |line: &&str| {
        line.starts_with("Acquire::")
            && !line.starts_with("Acquire::IndexTargets")
            && !line.starts_with("Acquire::Languages")
    };
    for line in machines_own.lines().filter(wanted) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Parses `apt-cache madison`: `package | version | mirror suite/component architecture Packages`.
fn parse_madison(text: &str) -> Vec<Offer> {
    let offer = |line: &str| {
        let mut fields = line.split('|').map(str::trim);
        let (version, place) = (fields.nth(1)?, fields.next()?);
        let (suite, _component) = place.split_whitespace().nth(1)?.rsplit_once('/')?;
        place.ends_with("Packages").then(|| Offer {
            version: version.to_owned(),
            suite: suite.to_owned(),
        })
    };
    text.lines().filter_map(offer).collect()
}

/// The source package named by a package's record, if it differs from the package's name.
fn source_package(record: &str) -> Option<&str> {
    record
        .lines()
        .find_map(|line| line.strip_prefix("Source:"))?
        .split_whitespace()
        .next()
}

fn siblings(installed: &str, source: &str) -> Vec<(String, String)> {
    let sibling = |line: &str| {
        let mut fields = line.split('\t');
        let status = fields.next()?;
        let is_sibling = status.starts_with("ii") && fields.next()? == source;
        let (package, version) = (fields.next()?, fields.next()?);
        is_sibling.then(|| (package.to_owned(), version.to_owned()))
    };
    installed.lines().filter_map(sibling).collect()
}

/// Refuses to go on where apt itself is missing.
pub fn check_present() -> Result<()> {
    if tool::which("apt-get").is_none() || tool::which("dpkg-deb").is_none() {
        bail!("There is no apt here: install what `cargo xtask doctor` lists by other means");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn madison_lists_versions_with_their_suites() {
        let text = "\
linux-source-6.12 | 6.12.95-1~bpo12+1 | http://x/debian bookworm-backports/main amd64 Packages
linux-source-6.12 | 6.12.1-1 | http://x/debian-security bookworm-security/main amd64 Packages
linux-source-6.12 | 6.12.1-1 | http://x/debian bookworm/main Sources
garbage
";
        let offer = |version: &str, suite: &str| Offer {
            version: version.into(),
            suite: suite.into(),
        };
        assert_eq!(
            parse_madison(text),
            [
                offer("6.12.95-1~bpo12+1", "bookworm-backports"),
                offer("6.12.1-1", "bookworm-security")
            ]
        );
    }

    #[test]
    fn the_distribution_is_read_with_and_without_quotes() {
        let system =
            System::parse("ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n").unwrap();
        assert_eq!(
            system,
            System {
                id: "debian".into(),
                codename: "bookworm".into()
            }
        );
        let system =
            System::parse("VERSION_CODENAME=\"noble\"\nID=\"ubuntu\"\nID_LIKE=debian\n").unwrap();
        assert_eq!(system.id, "ubuntu");
        assert_eq!(System::parse("ID=fedora\nVERSION_CODENAME=\n"), None);
    }

    #[test]
    fn siblings_are_installed_packages_of_the_same_source() {
        let installed =
            "ii \tqemu\tqemu-utils\t1:10.0\nun \tqemu\tqemu-kvm\t\nii \tgcc-12\tcpp-12\t12.2\n";
        assert_eq!(
            siblings(installed, "qemu"),
            [("qemu-utils".to_owned(), "1:10.0".to_owned())]
        );
        assert_eq!(
            source_package("Package: qemu-system-x86\nSource: qemu (1:7.2)\n"),
            Some("qemu")
        );
        assert_eq!(source_package("Package: make\n"), None);
    }

    #[test]
    fn progress_names_the_package() {
        let get = "Get:7 http://m/debian bookworm/main amd64 make amd64 4.3-4.1 [396 kB]";
        assert_eq!(install_progress(get).unwrap(), "downloading make");
        assert_eq!(
            install_progress("Setting up make (4.3-4.1) ...").unwrap(),
            "setting up make"
        );
        assert_eq!(
            install_progress("Unpacking make (4.3) ...").unwrap(),
            "unpacking make"
        );
        assert_eq!(install_progress("Reading package lists..."), None);
        assert_eq!(install_progress(""), None);
    }

    #[test]
    fn the_machines_proxy_is_kept_and_its_hooks_are_not() {
        let own = "Acquire::http::Proxy \"http://p:1\";\nAPT::Update::Post-Invoke:: \"rm x\";\n\
                   Acquire::IndexTargets::deb::DEP-11 \"\";\n";
        let text = configuration(Path::new("/c"), Path::new("/c/l"), own);
        assert!(text.contains("Acquire::http::Proxy \"http://p:1\";"));
        assert!(!text.contains("Post-Invoke") && !text.contains("DEP-11"));
    }
}
