use proptest::prelude::*;

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVER: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn sent(action: &Action) -> Message {
    match action {
        Action::Broadcast(bytes) | Action::Unicast { bytes, .. } => Message::parse(bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The server's word on a message of ours.
fn word(
    kind: DhcpMessageType,
    to: &Message,
    change: impl FnOnce(&mut DhcpRepr<'static>),
) -> Message {
    let mut answer = blank(kind, to.transaction, MAC);
    answer.your_ip = Ipv4Addr::new(192, 0, 2, 15);
    answer.server_identifier = Some(Ipv4Addr::new(192, 0, 2, 2));
    answer.subnet_mask = Some(Ipv4Addr::new(255, 255, 255, 0));
    answer.router = Some(Ipv4Addr::new(192, 0, 2, 2));
    answer.lease_duration = Some(1000);
    change(&mut answer);
    Message::parse(&emit(&answer)).unwrap()
}

/// A client that got its lease at second 10.
fn bound() -> Client {
    let mut client = Client::new(MAC, "host");
    client.link_up(seconds(10));
    let discover = sent(&client.tick(seconds(10))[0]);
    assert_eq!(discover.kind, DhcpMessageType::Discover);
    let offer = word(DhcpMessageType::Offer, &discover, |_| {});
    let actions = client.receive(seconds(10), &offer, SERVER);
    let request = sent(&actions[0]);
    assert_eq!(request.requested, Some(Ipv4Addr::new(192, 0, 2, 15)));
    assert_eq!(request.server, Some(Ipv4Addr::new(192, 0, 2, 2)));
    let ack = word(DhcpMessageType::Ack, &request, |_| {});
    let actions = client.receive(seconds(10), &ack, SERVER);
    let [Action::Bound(lease)] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(lease.subnet.to_string(), "192.0.2.15/24");
    assert_eq!(lease.router, Some(Ipv4Addr::new(192, 0, 2, 2)));
    client
}

#[test]
fn silence_is_asked_again_less_and_less_often() {
    let mut client = Client::new(MAC, "host");
    assert_eq!(client.due(), None);
    client.link_up(seconds(0));
    let mut gaps = Vec::new();
    for _ in 0..8 {
        let now = client.due().unwrap();
        assert_eq!(client.tick(now).len(), 1);
        assert!(client.tick(now).is_empty());
        gaps.push((client.due().unwrap() - now).as_secs());
    }
    assert_eq!(gaps, [1, 2, 4, 8, 16, 32, 32, 32]);
}

#[test]
fn lease_is_renewed_with_its_server_then_with_anyone_then_lost() {
    let mut client = bound();
    assert_eq!(client.due(), Some(seconds(510)));
    let actions = client.tick(seconds(510));
    let Action::Unicast { to, via, from, .. } = &actions[0] else {
        panic!("{actions:?}");
    };
    assert_eq!((*to, *via), (Ipv4Addr::new(192, 0, 2, 2), SERVER));
    assert_eq!(*from, Ipv4Addr::new(192, 0, 2, 15));
    assert!(matches!(
        client.tick(seconds(900)).as_slice(),
        [Action::Broadcast(_)]
    ));
    let actions = client.tick(seconds(1010));
    assert_eq!(actions[0], Action::Lost);
    assert_eq!(sent(&actions[1]).kind, DhcpMessageType::Discover);
}

#[test]
fn renewal_moves_the_end() {
    let mut client = bound();
    let request = sent(&client.tick(seconds(510))[0]);
    assert_eq!(request.client, Ipv4Addr::new(192, 0, 2, 15));
    let ack = word(DhcpMessageType::Ack, &request, |_| {});
    let actions = client.receive(seconds(511), &ack, SERVER);
    assert!(matches!(actions.as_slice(), [Action::Bound(_)]));
    assert_eq!(client.due(), Some(seconds(1011)));
}

#[test]
fn refusal_takes_the_address_away() {
    let mut client = bound();
    let request = sent(&client.tick(seconds(510))[0]);
    let nak = word(DhcpMessageType::Nak, &request, |_| {});
    assert_eq!(client.receive(seconds(511), &nak, SERVER), [Action::Lost]);
    assert!(client.tick(seconds(511)).is_empty());
    assert_eq!(
        sent(&client.tick(seconds(512))[0]).kind,
        DhcpMessageType::Discover
    );
}

#[test]
fn link_that_comes_back_asks_for_the_same_address() {
    let mut client = bound();
    client.link_down();
    assert!(client.tick(seconds(20)).is_empty());
    client.link_up(seconds(30));
    let request = sent(&client.tick(seconds(30))[0]);
    assert_eq!(request.kind, DhcpMessageType::Request);
    assert_eq!(request.requested, Some(Ipv4Addr::new(192, 0, 2, 15)));
    assert_eq!(request.server, None);
    // Nobody knows it: from the beginning, with the address kept meanwhile.
    let mut last = request;
    for _ in 0..MAX_TRIES {
        let now = client.due().unwrap();
        last = sent(client.tick(now).last().unwrap());
    }
    assert_eq!(last.kind, DhcpMessageType::Discover);
    assert!(client.lease.is_some());
}

#[test]
fn link_that_stays_down_loses_the_address_in_time() {
    let mut client = bound();
    client.link_down();
    assert_eq!(client.due(), Some(seconds(1010)));
    assert_eq!(client.tick(seconds(1010)), [Action::Lost]);
    assert_eq!(client.due(), None);
}

#[test]
fn forged_and_senseless_words_are_passed_over() {
    let mut client = Client::new(MAC, "");
    client.link_up(seconds(0));
    let discover = sent(&client.tick(seconds(0))[0]);
    let mut forged = word(DhcpMessageType::Offer, &discover, |_| {});
    forged.transaction ^= 1;
    assert!(client.receive(seconds(0), &forged, SERVER).is_empty());
    for change in [
        (|m| m.your_ip = Ipv4Addr::new(127, 0, 0, 1)) as fn(&mut DhcpRepr<'static>),
        |m| m.your_ip = Ipv4Addr::new(192, 0, 2, 255),
        |m| m.subnet_mask = Some(Ipv4Addr::new(0, 255, 0, 0)),
        |m| m.server_identifier = None,
    ] {
        let offer = word(DhcpMessageType::Offer, &discover, change);
        assert!(client.receive(seconds(0), &offer, SERVER).is_empty());
    }
    // An acknowledgement before any request.
    let ack = word(DhcpMessageType::Ack, &discover, |_| {});
    assert!(client.receive(seconds(0), &ack, SERVER).is_empty());
}

#[test]
fn a_lease_of_no_time_does_not_keep_us_busy() {
    let message = word(
        DhcpMessageType::Ack,
        &Message::parse(&emit(&blank(DhcpMessageType::Discover, 1, MAC))).unwrap(),
        |message| message.lease_duration = Some(0),
    );
    let lease = lease(&message, SERVER, seconds(0)).unwrap();
    assert_eq!((lease.renew, lease.expire), (seconds(10), seconds(20)));
}

proptest! {
    #[test]
    fn any_server_is_survived(
        kinds in proptest::collection::vec((0_u8..9, any::<u32>(), any::<u32>(), any::<[u32; 3]>(), 0_u64..5000), 0..40),
    ) {
        let mut client = Client::new(MAC, "host");
        client.link_up(seconds(0));
        let mut now = seconds(0);
        for (kind, address, mask, times, wait) in kinds {
            now += seconds(wait);
            let sent = client.tick(now);
            prop_assert!(sent.len() <= 2);
            let message = Message {
                kind: DhcpMessageType::from(kind),
                transaction: client.transaction,
                hardware: MAC,
                client: Ipv4Addr::UNSPECIFIED,
                yours: address.into(),
                server: Some(Ipv4Addr::from(mask | 1)),
                requested: None,
                mask: Some(Ipv4Addr::from(u32::MAX << (mask % 33).min(31))),
                router: Some(address.into()),
                dns: vec![mask.into()],
                times: times.map(Some),
                broadcast: false,
            };
            for action in client.receive(now, &message, SERVER) {
                if let Action::Bound(lease) = action {
                    prop_assert!(lease.renew > now && lease.renew <= lease.rebind && lease.rebind <= lease.expire);
                }
            }
            prop_assert!(client.due().is_some());
        }
    }
}
