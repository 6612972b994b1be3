//! Properties are read as lapin writes them, and no bytes are refused.

use std::io::Cursor;

use bytes::{BufMut, BytesMut};
use dacapo_event::wire::{decode_message, encode_properties};
use lapin::protocol::basic::gen_properties;
use proptest::prelude::*;

use super::*;
use crate::convert::tests::properties;
use crate::convert::to_lapin;
use crate::wire::frame::put_short;

/// Returns the bytes that lapin sends for these properties.
fn written_by_lapin(properties: &Properties) -> Bytes {
    let properties = to_lapin(properties).unwrap();
    let mut room = vec![0; 64 * 1024];
    let written = gen_properties(&properties)(Cursor::new(&mut room[..]).into());
    let (_, length) = written.unwrap().into_inner();
    Bytes::copy_from_slice(&room[..usize::try_from(length).unwrap()])
}

proptest! {
    #[test]
    fn what_lapin_writes_is_read_as_it_was_meant(properties in properties()) {
        let bytes = written_by_lapin(&properties);
        prop_assert_eq!(encoded_len(&properties), 12 + bytes.len());
        prop_assert_eq!(decode(bytes), (properties, Reading::Whole));
    }

    #[test]
    fn no_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (properties, _) = decode(Bytes::from(bytes));
        // Whatever came out of it, the archive can hold.
        let message = Message { properties, ..Message::default() };
        let column = encode_properties(&message);
        let back = decode_message("", "", &column, Bytes::new()).unwrap();
        prop_assert_eq!(back, message);
    }

    #[test]
    fn a_damaged_header_table_is_kept_as_bytes(
        properties in properties(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = written_by_lapin(&properties).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let (properties, reading) = decode(Bytes::from(bytes));
        let headers = properties.headers.unwrap_or_default();
        let kept = headers.get("x-dacapo-unread-headers").or(headers.get("x-dacapo-unread-properties"));
        prop_assert_eq!(kept.is_some(), reading == Reading::Kept);
    }
}

/// Returns the properties of a message whose headers are tables in tables.
fn nested(levels: usize) -> Bytes {
    let mut innermost = BytesMut::new();
    for _ in 0..levels {
        let mut around = BytesMut::new();
        put_short(&mut around, b"t");
        around.put_u8(b'F');
        around.put_u32(u32::try_from(innermost.len()).unwrap());
        around.put_slice(&innermost);
        innermost = around;
    }
    let mut bytes = BytesMut::new();
    bytes.put_u16(1 << 13);
    bytes.put_u32(u32::try_from(innermost.len()).unwrap());
    bytes.put_slice(&innermost);
    bytes.freeze()
}

#[test]
fn tables_as_deep_as_a_frame_holds_are_read_and_can_be_archived() {
    for levels in [1, 20, 23, 24, 25, 30, 18_000] {
        let (properties, reading) = decode(nested(levels));
        assert_eq!(reading, Reading::Whole);
        let message = Message { properties, ..Message::default() };
        let column = encode_properties(&message);
        let back = decode_message("", "", &column, Bytes::new()).unwrap();
        assert_eq!(back, message, "{levels}");
    }
}

#[test]
fn bytes_that_are_no_text_are_noticed_wherever_they_are() {
    let bad = ShortStr::new(&b"\xff"[..]).unwrap();
    let plain = Message::default();
    assert!(is_text(&plain));
    assert!(!is_text(&Message { routing_key: bad.clone(), ..Message::default() }));
    let app_id = Properties { app_id: Some(bad.clone()), ..Properties::default() };
    assert!(!is_text(&Message { properties: app_id, ..Message::default() }));
    let table: FieldTable = [(bad, FieldValue::Void)].into_iter().collect();
    let array = FieldValue::Array(vec![FieldValue::Table(table)]);
    let headers = [(ShortStr::from_static("a"), array)].into_iter().collect();
    let properties = Properties { headers: Some(headers), ..Properties::default() };
    assert!(!is_text(&Message { properties, ..Message::default() }));
}
