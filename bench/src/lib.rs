//! Benchmarks of overlayd: run them with `cargo bench -p bench`.
