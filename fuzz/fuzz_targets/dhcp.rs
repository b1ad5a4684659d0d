//! Frames and DHCP messages, as a guest on a private network and as a server on the host's wire.
#![no_main]

use host::net::fuzzing;

/// A message up to its options (RFC 2131 §2): op, hardware type, addresses, magic.
fn message(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[if kind == 1 || kind == 3 { 1 } else { 2 }, 1, 6, 0]);
    bytes[16..20].copy_from_slice(&[10, 0, 0, 10]);
    bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend([53, 1, kind, 54, 4, 10, 0, 0, 1, 1, 4, 255, 255, 255, 0]);
    bytes.extend(options);
    bytes.push(255);
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let times = [51, 4, 0, 0, 0, 60, 58, 4, 0, 0, 0, 20, 59, 4, 0, 0, 0, 40];
    let names = [3, 4, 10, 0, 0, 1, 6, 8, 10, 0, 0, 1, 8, 8, 8, 8];
    let exchange = [(2, &times[..]), (5, &times[..]), (5, &names[..]), (6, &[])]
        .map(|(kind, options)| {
            let message = message(kind, options);
            let len = u8::try_from(message.len() - 240).expect("short");
            [vec![5, len], message].concat()
        })
        .concat();
    let mut seeds = vec![[vec![1], exchange].concat()];
    for kind in [1, 3, 8] {
        seeds.push(
            [
                vec![0, 40],
                vec![0; 40],
                message(kind, &[50, 4, 10, 0, 0, 10]),
            ]
            .concat(),
        );
    }
    seeds
}

fuzz::fuzz_target!(init: fuzz::begin(seeds), |data: &[u8]| {
    let [role, data @ ..] = data else {
        return;
    };
    if role & 1 == 0 {
        let Some((len, rest)) = data.split_first() else {
            return;
        };
        let (frame, message) = rest.split_at(rest.len().min(usize::from(*len)));
        fuzzing::server(frame, message);
        fuzzing::server(rest, &[]);
    } else {
        let mut rest = data;
        let messages = std::iter::from_fn(|| {
            let (wait, after) = rest.split_first()?;
            let (len, after) = after.split_first()?;
            let len = (240 + usize::from(*len)).min(after.len());
            let (message, after) = after.split_at(len);
            rest = after;
            Some((*wait, message))
        });
        fuzzing::client(messages);
    }
});
