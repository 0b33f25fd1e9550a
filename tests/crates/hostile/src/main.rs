//! Prints what the build script and the proc macro got.

fn main() {
    print!("{}", include_str!(concat!(env!("OUT_DIR"), "/report.txt")));
    print!("{}", hostile_macro::report!());
}
