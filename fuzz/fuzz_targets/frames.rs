//! Whatever a guest, passt and name servers send to the egress filter: no panic, and nothing passes that the policy
//! does not allow. What may pass is said by a model that reads every frame for itself.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent_net::model::drive(bytes));
