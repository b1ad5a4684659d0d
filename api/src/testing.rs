//! The published contract, as something that tests can hold requests and answers against.
