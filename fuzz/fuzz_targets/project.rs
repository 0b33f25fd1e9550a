#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    qk_fuzz::project(data);
});
