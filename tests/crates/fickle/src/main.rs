fn main() {
    println!("fickle 1.0.0, built {}", env!("BUILT"));
}
