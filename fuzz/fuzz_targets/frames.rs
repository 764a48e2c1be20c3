//! Whatever a guest, far ends, clients and name servers send to the network stack: no panic, and the host is asked for nothing that
//! the policy does not allow. What it may be asked for is said by a model of its own.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| microagent_net::model::drive(bytes));
