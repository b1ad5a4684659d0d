use std::path::Path;
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let image = tests::Image::built().unwrap();
    let lab = benches::laboratory::Laboratory::new(&image, Path::new(&args[0])).unwrap();
    if args[1] == "alone" {
        let devices: Vec<&str> = args[3..].iter().map(String::as_str).collect();
        for s in lab.alone(&args[2], &devices).unwrap().of(&[]) {
            println!("{s}");
        }
    } else {
        for s in lab.run(&args[1]).unwrap().of(&[]) {
            println!("{s}");
        }
    }
}
