use std::io::{Read, Write};
use std::thread;

use super::protocol::{ANSWER_ACK, ANSWER_INFO, ANSWER_UNKNOWN, Info, OPTION_GO, answer, greeting};
use super::*;

const GOOD: u16 =
    protocol::HAS_FLAGS | protocol::SEND_FLUSH | protocol::SEND_FUA | protocol::SEND_WRITE_ZEROES;

/// What comes of a server that says `first`, and `second` when it was asked.
fn says(first: &[u8], second: &[u8]) -> Result<Nbd, NbdError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (first, second) = (first.to_vec(), second.to_vec());
    let thread = thread::spawn(move || {
        theirs.write_all(&first).unwrap();
        let mut asked = [0; 4];
        if first.len() >= protocol::GREETING_LEN && theirs.read_exact(&mut asked).is_ok() {
            let mut rest = [0; 16 + 4 + 4 + 4];
            theirs.read_exact(&mut rest).unwrap();
            let _ = theirs.write_all(&second);
        }
    });
    let disk = Nbd::new(ours, "disk", false);
    thread.join().unwrap();
    disk
}

fn info(info: Info) -> Vec<u8> {
    answer(OPTION_GO, ANSWER_INFO, &info.encode())
}

fn export(len: u64, flags: u16) -> Vec<u8> {
    info(Info::Export { len, flags })
}

fn ack() -> Vec<u8> {
    answer(OPTION_GO, ANSWER_ACK, &[])
}

#[test]
fn an_export_is_what_the_server_says() {
    let sizes = Info::BlockSize {
        min: 512,
        preferred: 4096,
        max: 1 << 20 | 1,
    };
    let answers = [info(sizes), info(Info::Other), export(1 << 20, GOOD), ack()].concat();
    let disk = says(&greeting(3), &answers).unwrap();
    assert_eq!((disk.len(), disk.read_only()), (1 << 20, false));
    assert_eq!((disk.export.min, disk.export.max), (512, 1 << 20));
    let answers = [export(512, protocol::READ_ONLY), ack()].concat();
    let disk = says(&greeting(1), &answers).unwrap();
    assert!(disk.read_only());
}

#[test]
fn what_cannot_be_a_disk_is_refused_with_the_reason() {
    let sizes = |min, max| {
        let preferred = min;
        let sizes = Info::BlockSize {
            min,
            preferred,
            max,
        };
        [info(sizes), export(1 << 20, GOOD), ack()].concat()
    };
    let unknown = answer(OPTION_GO, ANSWER_UNKNOWN, b"no such disk");
    let lacks = |flag: u16| [export(512, GOOD & !flag), ack()].concat();
    for (answers, expected) in [
        (unknown, "\"no such disk\""),
        ([export(0, GOOD), ack()].concat(), "0 bytes"),
        ([export(513, GOOD), ack()].concat(), "513 bytes"),
        (sizes(4096, 1 << 20), "4096"),
        (sizes(1, 511), "0 bytes"),
        (lacks(protocol::SEND_FLUSH), "no flush"),
        (lacks(protocol::SEND_FUA), "durable"),
        (lacks(protocol::SEND_WRITE_ZEROES), "write zeroes"),
        (ack(), "no length"),
        (answer(OPTION_GO, 2, &[]), "no kind"),
        (answer(6, ANSWER_ACK, &[]), "never asked"),
        (answer(OPTION_GO, ANSWER_INFO, &[0]), "breaks the protocol"),
        (vec![0; 20], "breaks the protocol"),
        (vec![], "Cannot agree"),
        (info(Info::Other).repeat(100), "too many"),
    ] {
        let error = says(&greeting(3), &answers).err().unwrap().to_string();
        assert!(error.contains(expected), "{error:?}, not {expected:?}");
    }
    let error = says(&greeting(0), &[]).err().unwrap();
    assert!(matches!(error, NbdError::OldStyle), "{error}");
    let error = says(&[0x55; 18], &[]).err().unwrap();
    assert!(matches!(error, NbdError::Protocol(_)), "{error}");
    let error = says(b"NBD", &[]).err().unwrap();
    assert!(matches!(error, NbdError::Stream(_)), "{error}");
}
