//! Links the ROM stage, and nothing else of this package, by its own linker script.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=stage.ld");
    // Code at a fixed address that no loader relocates: neither C's start-up files nor position independence.
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--no-dynamic-linker",
        &format!("-Wl,-T,{folder}/stage.ld"),
    ] {
        println!("cargo::rustc-link-arg-bin=bootblock={argument}");
    }
}
