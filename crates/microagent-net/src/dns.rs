//! Names for the guest: its queries, decided and asked on the host's side.
//!
//! A guest's query never leaves as it came. The stack reads it ([`message`]), decides by its name, and asks the
//! host's name servers with a message of its own ([`resolver`]); the answer is taken apart and put together
//! anew, so that the guest gets nothing that was not understood. Only then is it known which address belongs
//! to which name ([`names`]), and for how long.
//!
//! What is answered without asking: names that the stack knows itself ([`local`]); IPv6 addresses and service bindings (HTTPS, SVCB) with "nothing there",
//! since guests have no IPv6 and a binding would only name addresses past the rules; names that no rule covers
//! with "no such name". That is not "refused", because musl, and all that does as it does, ignores a
//! refusal and waits for its timeout, whereas "no such name" ends a lookup at once in every C library. Who
//! asks with EDNS is told the true reason (RFC 8914, "blocked").
//!
//! # Truncation
//! The host's servers are asked with EDNS and, where they truncate, again by TCP. The guest is served by both. Records that
//! do not fit its buffer are left out from the end, and the answer is marked: older musl cannot ask by TCP, and takes
//! any of a set of addresses.

pub(crate) mod local;
pub(crate) mod message;
pub(crate) mod names;
pub(crate) mod resolver;
