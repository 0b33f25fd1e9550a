//! The channel against itself, against snow's own transport, and against somebody in between.

use futures::io::ErrorKind;
use futures::{AsyncReadExt, AsyncWriteExt};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::*;

type Socket = Compat<DuplexStream>;

fn noise() -> (Keypair, Noise) {
    let identity = Keypair::generate_ed25519();
    let noise = Noise::new(&identity).expect("signs");
    (identity, noise)
}

/// Both ends after a handshake, with who each of them takes the other one for.
async fn pair(
    dialer: Noise,
    listener: Noise,
) -> (
    Result<(PeerId, Channel<Socket>), Error>,
    Result<(PeerId, Channel<Socket>), Error>,
) {
    let (near, far) = duplex(1 << 20);
    tokio::join!(
        dialer.upgrade_outbound(near.compat(), PROTOCOL),
        listener.upgrade_inbound(far.compat(), PROTOCOL),
    )
}

/// A channel to write into, whose messages can be read, and one that reads what is given to it.
fn halves(key_messages_max: u64) -> (Channel<Socket>, DuplexStream, Channel<Socket>, DuplexStream) {
    let cipher = || Cipher::with_key_messages_max(&[7; 32], key_messages_max);
    let (writes, written) = duplex(8 << 20);
    let (given, reads) = duplex(8 << 20);
    let writer = Channel::new(writes.compat(), cipher(), cipher());
    let reader = Channel::new(reads.compat(), cipher(), cipher());
    (writer, written, reader, given)
}

async fn sealed(plain: &[u8]) -> Vec<u8> {
    let (mut writer, mut written, ..) = halves(1 << 20);
    writer.write_all(plain).await.expect("writes");
    writer.close().await.expect("closes");
    drop(writer);
    let mut bytes = Vec::new();
    written.read_to_end(&mut bytes).await.expect("reads");
    bytes
}

async fn opened(sealed: &[u8]) -> io::Result<Vec<u8>> {
    let (_, _, mut reader, mut given) = halves(1 << 20);
    given.write_all(sealed).await?;
    drop(given);
    let mut plain = Vec::new();
    reader.read_to_end(&mut plain).await?;
    Ok(plain)
}

#[tokio::test]
async fn both_sides_learn_who_the_other_one_is() {
    let ((one, dialer), (two, listener)) = (noise(), noise());
    let (near, far) = pair(dialer, listener).await;
    let ((far_peer, mut near), (near_peer, mut far)) =
        (near.expect("a channel"), far.expect("a channel"));
    assert_eq!(far_peer, two.public().to_peer_id());
    assert_eq!(near_peer, one.public().to_peer_id());

    let mut heard = [0; 5];
    near.write_all(b"there").await.expect("writes");
    near.flush().await.expect("flushes");
    far.read_exact(&mut heard).await.expect("reads");
    assert_eq!(&heard, b"there");
    far.write_all(b"again").await.expect("writes");
    far.close().await.expect("closes");
    near.read_exact(&mut heard).await.expect("reads");
    assert_eq!(&heard, b"again");
    assert_eq!(near.read(&mut heard).await.expect("ends"), 0);
}

/// Who shows somebody else's identity lacks the static key that it signed.
#[tokio::test]
async fn an_identity_of_another_handshake_is_refused() {
    let ((_, honest), (_, thief)) = (noise(), noise());
    let posing = Noise {
        identity: Arc::clone(&honest.identity),
        ..thief
    };
    let (_, other) = noise();
    let (near, far) = pair(other.clone(), posing.clone()).await;
    assert!(matches!(near, Err(Error::Signature)));
    assert!(far.is_err());
    let (_, far) = pair(posing, other).await;
    assert!(matches!(far, Err(Error::Signature)));
}

#[tokio::test]
async fn a_long_handshake_is_not_read() {
    let (mut near, far) = duplex(1 << 16);
    near.write_all(&60_000_u16.to_be_bytes())
        .await
        .expect("writes");
    let (_, listener) = noise();
    let answer = listener.upgrade_inbound(far.compat(), PROTOCOL).await;
    assert!(matches!(answer, Err(Error::TooLong(60_000))));
}

/// snow's own transport reads and writes the same messages, over a change of keys too.
#[tokio::test]
async fn it_is_the_transport_of_the_noise_protocol_framework() {
    let (_, noise) = noise();
    let (mut near, mut far) = (noise.initiator().unwrap(), noise.responder().unwrap());
    let (mut message, mut payload) = ([0; 512], [0; 512]);
    for turn in 0..3 {
        let (from, to) = match turn {
            1 => (&mut far, &mut near),
            _ => (&mut near, &mut far),
        };
        let length = from.write_message(&[], &mut message).unwrap();
        to.read_message(&message[..length], &mut payload).unwrap();
    }
    let (outbound, inbound) = near.dangerously_get_raw_split();
    let mut snow = far.into_transport_mode().unwrap();
    let (socket, mut wire) = duplex(1 << 20);
    let [inbound, outbound] = [inbound, outbound].map(|key| Cipher::with_key_messages_max(&key, 3));
    let mut channel = Channel::new(socket.compat(), inbound, outbound);

    let mut plain = [0; 512];
    for number in 0..7_u8 {
        if number > 0 && number % 3 == 0 {
            snow.rekey_incoming();
        }
        channel.write_all(&[number; 100]).await.unwrap();
        channel.flush().await.unwrap();
        let length = wire.read_u16().await.unwrap();
        let mut message = vec![0; usize::from(length)];
        wire.read_exact(&mut message).await.unwrap();
        let bytes = snow.read_message(&message, &mut plain).unwrap();
        assert_eq!(plain[..bytes], [number; 100]);
    }
    for number in 0..3_u8 {
        let bytes = snow.write_message(&[number; 200], &mut message).unwrap();
        wire.write_u16(bytes as u16).await.unwrap();
        wire.write_all(&message[..bytes]).await.unwrap();
        channel.read_exact(&mut plain[..200]).await.unwrap();
        assert_eq!(plain[..200], [number; 200]);
    }
}

/// As a muxer does it: a flush after each frame, without waiting for it.
#[tokio::test]
async fn frames_that_follow_each_other_share_a_message() {
    let (mut writer, mut written, ..) = halves(1 << 20);
    std::future::poll_fn(|cx| {
        for _ in 0..3 {
            assert!(Pin::new(&mut writer).poll_write(cx, &[1; 100]).is_ready());
            assert!(Pin::new(&mut writer).poll_flush(cx).is_pending());
        }
        std::task::Poll::Ready(())
    })
    .await;
    writer.flush().await.expect("flushes");
    assert_eq!(written.read_u16().await.expect("a message"), 300 + 16);
}

/// Buffers follow what goes through: after much, little, and much again.
#[tokio::test]
async fn little_after_much_gives_buffers_back() {
    let (mut writer, mut written, mut reader, mut given) = halves(1 << 20);
    let mut held = Vec::new();
    for bytes in std::iter::once(1 << 20).chain([10; 40]).chain([1 << 20]) {
        writer.write_all(&vec![5; bytes]).await.expect("writes");
        writer.flush().await.expect("flushes");
        let mut wire = vec![0; bytes + 18 * bytes.div_ceil(65_519)];
        written.read_exact(&mut wire).await.expect("a message");
        given.write_all(&wire).await.expect("gives");
        let mut plain = vec![0; bytes];
        reader.read_exact(&mut plain).await.expect("reads");
        assert_eq!(plain, vec![5; bytes]);
        held.push(reader.held_bytes());
    }
    let (much, little) = (held[0], held[40]);
    assert!(much > 100_000 && little < 10_000, "{held:?}");
}

#[tokio::test]
async fn what_was_changed_cut_or_moved_is_an_error() {
    let plain = vec![3; 150_000];
    let honest = sealed(&plain).await;
    assert_eq!(opened(&honest).await.expect("opens"), plain);

    for at in [2, 40_000, 65_536, honest.len() - 1] {
        let mut changed = honest.clone();
        changed[at] ^= 1;
        let error = opened(&changed).await.expect_err("was changed");
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{at}");
    }
    let error = opened(&honest[..honest.len() - 1]).await;
    let error = error.expect_err("was cut");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);

    let first = 2 + usize::from(u16::from_be_bytes([honest[0], honest[1]]));
    let error = opened(&honest[first..]).await.expect_err("lacks the first");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let twice = [&honest[..first], &honest].concat();
    let error = opened(&twice).await.expect_err("has it twice");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let error = opened(&[0, 5, 1, 2, 3, 4, 5]).await;
    let error = error.expect_err("has no tag");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

/// Whoever reads on after an error is not given what follows the message that was changed.
#[tokio::test]
async fn nothing_behind_a_changed_message_is_read() {
    let (mut writer, mut written, mut reader, mut given) = halves(1 << 20);
    let mut wire = Vec::new();
    for number in 0..3_u8 {
        writer.write_all(&[number; 50]).await.expect("writes");
        writer.flush().await.expect("flushes");
        let mut message = [0; 50 + 18];
        written.read_exact(&mut message).await.expect("a message");
        wire.extend(message);
    }
    wire[10] ^= 1;
    given.write_all(&wire).await.expect("gives");
    let mut plain = [0; 50];
    for _ in 0..4 {
        let error = reader.read(&mut plain).await.expect_err("was changed");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(
        writes in proptest::collection::vec((0_usize..200_000, any::<bool>()), 1..12),
        reads in proptest::collection::vec(1_usize..100_000, 1..8),
        key_messages_max in 1_u64..6,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let cipher = || Cipher::with_key_messages_max(&[7; 32], key_messages_max);
            let (near, far) = duplex(50_000);
            let mut writer = Channel::new(near.compat(), cipher(), cipher());
            let mut reader = Channel::new(far.compat(), cipher(), cipher());
            let plain: Vec<u8> = (0..writes.iter().map(|(bytes, _)| bytes).sum())
                .map(|at: usize| (at % 251) as u8)
                .collect();
            let writing = async {
                let mut rest = &plain[..];
                for (bytes, flush) in &writes {
                    let (now, later) = rest.split_at(*bytes);
                    writer.write_all(now).await.unwrap();
                    if *flush {
                        writer.flush().await.unwrap();
                    }
                    rest = later;
                }
                writer.close().await.unwrap();
                drop(writer);
            };
            let reading = async {
                let (mut got, mut sizes) = (Vec::new(), reads.iter().cycle());
                loop {
                    let mut buffer = vec![0; *sizes.next().unwrap()];
                    match reader.read(&mut buffer).await.unwrap() {
                        0 => return got,
                        bytes => got.extend_from_slice(&buffer[..bytes]),
                    }
                }
            };
            let ((), got) = tokio::join!(writing, reading);
            assert!(got == plain);
        });
    }
}
