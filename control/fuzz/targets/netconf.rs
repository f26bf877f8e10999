//! The network configuration: whatever is accepted can be used.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay_leases::netconf::NetworkConfig;

fuzz_target!(|text: &str| {
    match NetworkConfig::parse(text) {
        Ok(config) => {
            assert!(config.device().len() <= 15, "a device's name has at most 15 characters");
            let mut subnets = config.subnets();
            let first = subnets.next().expect("there is a subnet to lease");
            assert!(config.network.contains(&first) && config.fits(first));
            assert!(subnets.take(1000).all(|subnet| config.network.contains(&subnet) && config.fits(subnet)));
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error is one line: {error}"),
    }
});
