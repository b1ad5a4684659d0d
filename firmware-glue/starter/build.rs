//! Links the program without C's start-up files and library: it is to be a few hundred bytes.

fn main() {
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--no-dynamic-linker",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,-z,norelro",
        "-Wl,-N",
    ] {
        println!("cargo::rustc-link-arg-bin=starter={argument}");
    }
}
