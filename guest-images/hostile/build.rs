//! Links the program at a fixed address, by its own linker script, and without C's start-up files.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=program.ld");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--no-dynamic-linker",
        &format!("-Wl,-T,{folder}/program.ld"),
    ] {
        println!("cargo::rustc-link-arg-bin=hostile={argument}");
    }
}
