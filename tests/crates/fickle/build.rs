//! Records the time, as build scripts should not.

fn main() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let built = match std::env::var_os("CARGO_FEATURE_STEADY") {
        Some(_) => "at no time".to_owned(),
        None => format!("at {} s", now.unwrap().as_secs()),
    };
    println!("cargo:rustc-env=BUILT={built}");
}
