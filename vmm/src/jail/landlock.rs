//! No access to files by path, to TCP, or to processes outside of the jail: by Landlock, where the kernel has it.
//!
//! The namespaces forbid the same. This is the second wall, should there be a way around them.

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};

use super::JailError;

/// All that this version of Landlock knows is asked for; a kernel that knows less restricts less.
const VERSION: ABI = ABI::V6;

/// Restricts this process. Below `/` it may use files, if that is a folder the user `gave`.
pub(super) fn restrict(gave: bool) -> Result<(), JailError> {
    let status = try_restrict(gave).map_err(JailError::Landlock)?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => {}
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
            log::info!(
                "This kernel's Landlock is version {}, {} is wanted: the jail does without what is new there",
                effective_abi as i32,
                VERSION as i32
            );
        }
        (_, LandlockStatus::NotImplemented) => {
            log::info!(
                "This kernel has no Landlock (CONFIG_SECURITY_LANDLOCK): the jail does without"
            );
        }
        (_, status) => log::info!("Landlock is not in force ({status:?}): the jail does without"),
    }
    Ok(())
}

fn try_restrict(gave: bool) -> Result<::landlock::RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(VERSION))?
        .handle_access(AccessNet::from_all(VERSION))?
        .scope(Scope::from_all(VERSION))?
        .create()?;
    if gave {
        let root: Result<PathFd, PathFdError> = PathFd::new("/");
        if let Ok(root) = root {
            rules = rules.add_rule(PathBeneath::new(root, files()))?;
        }
    }
    rules.restrict_self()
}

/// What one does with images, logs and sockets.
fn files() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::ReadDir
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
}
