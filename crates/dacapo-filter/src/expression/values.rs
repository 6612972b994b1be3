//! Header values and JSON as CEL values.

use std::collections::HashMap;

use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString,
    CelTimestamp, CelUInt,
};
use cel::common::value::Val;
use chrono::{DateTime, FixedOffset};
use dacapo_event::{FieldTable, FieldValue, Properties, ShortStr, Timestamp};
use serde_json::Value as Json;

/// A value that owns all its data.
pub(crate) type OwnedVal = Box<dyn Val>;

/// Returns a moment as CEL has it.
pub(super) fn timestamp(at: Timestamp) -> CelTimestamp {
    let utc = DateTime::from_timestamp_micros(at.as_micros())
        .expect("the years 1 to 9999 are within chrono's range");
    CelTimestamp::from(DateTime::<FixedOffset>::from(utc))
}

/// Returns bytes as a string if they are UTF-8.
pub(super) fn text_or_bytes(bytes: &[u8]) -> OwnedVal {
    match std::str::from_utf8(bytes) {
        Ok(text) => Box::new(CelString::from(text.to_owned())),
        Err(_) => Box::new(CelBytes::from(bytes.to_vec())),
    }
}

/// Returns a header table as a map. The first of two fields of one name wins, as in
/// [`FieldTable::get`].
pub(super) fn table(table: &FieldTable) -> OwnedVal {
    let mut map: HashMap<CelMapKey<'static>, OwnedVal> = HashMap::with_capacity(table.len());
    for (name, value) in table.iter() {
        map.entry(CelMapKey::from(name.to_string())).or_insert_with(|| field(value));
    }
    Box::new(CelMap::from(map))
}

/// Every integer becomes an `int`, whatever its width on the bus, so that it can be reckoned with
/// without conversion; decimals become doubles.
fn field(value: &FieldValue) -> OwnedVal {
    let int = |n: i64| -> OwnedVal { Box::new(CelInt::from(n)) };
    match value {
        FieldValue::Boolean(flag) => Box::new(CelBool::from(*flag)),
        FieldValue::ShortShortInt(n) => int(i64::from(*n)),
        FieldValue::ShortShortUInt(n) => int(i64::from(*n)),
        FieldValue::ShortInt(n) => int(i64::from(*n)),
        FieldValue::ShortUInt(n) => int(i64::from(*n)),
        FieldValue::LongInt(n) => int(i64::from(*n)),
        FieldValue::LongUInt(n) => int(i64::from(*n)),
        FieldValue::LongLongInt(n) => int(*n),
        FieldValue::Float(x) => Box::new(CelDouble::from(f64::from(*x))),
        FieldValue::Double(x) => Box::new(CelDouble::from(*x)),
        FieldValue::Decimal { scale, value } => {
            Box::new(CelDouble::from(f64::from(*value) / 10_f64.powi(i32::from(*scale))))
        }
        FieldValue::LongString(bytes) => text_or_bytes(bytes),
        FieldValue::ByteArray(bytes) => Box::new(CelBytes::from(bytes.to_vec())),
        FieldValue::Array(values) => {
            Box::new(CelList::from(values.iter().map(field).collect::<Vec<OwnedVal>>()))
        }
        FieldValue::Timestamp(seconds) => Box::new(timestamp(Timestamp::from_secs(*seconds))),
        FieldValue::Table(fields) => table(fields),
        FieldValue::Void => Box::new(CelNull),
    }
}

/// Returns the basic properties without headers as a map; absent ones are not in it.
pub(super) fn properties(properties: &Properties) -> OwnedVal {
    let mut map: HashMap<CelMapKey<'static>, OwnedVal> = HashMap::new();
    let mut put = |name: &'static str, value: OwnedVal| {
        map.insert(CelMapKey::from(name), value);
    };
    let texts: [(&'static str, &Option<ShortStr>); 10] = [
        ("content_type", &properties.content_type),
        ("content_encoding", &properties.content_encoding),
        ("correlation_id", &properties.correlation_id),
        ("reply_to", &properties.reply_to),
        ("expiration", &properties.expiration),
        ("message_id", &properties.message_id),
        ("type", &properties.kind),
        ("user_id", &properties.user_id),
        ("app_id", &properties.app_id),
        ("cluster_id", &properties.cluster_id),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            put(name, Box::new(CelString::from(text.to_str_lossy().into_owned())));
        }
    }
    if let Some(mode) = properties.delivery_mode {
        put("delivery_mode", Box::new(CelInt::from(i64::from(mode.octet()))));
    }
    if let Some(priority) = properties.priority {
        put("priority", Box::new(CelInt::from(i64::from(priority))));
    }
    if let Some(seconds) = properties.timestamp {
        put("timestamp", Box::new(timestamp(Timestamp::from_secs(seconds))));
    }
    Box::new(CelMap::from(map))
}

/// Returns JSON as CEL has it: an integer as `int` (or `uint` past its range), another number as
/// `double`.
pub(super) fn json(value: Json) -> OwnedVal {
    match value {
        Json::Null => Box::new(CelNull),
        Json::Bool(flag) => Box::new(CelBool::from(flag)),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Box::new(CelInt::from(int)),
            (None, Some(uint)) => Box::new(CelUInt::from(uint)),
            (None, None) => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Json::String(text) => Box::new(CelString::from(text)),
        Json::Array(values) => {
            Box::new(CelList::from(values.into_iter().map(json).collect::<Vec<OwnedVal>>()))
        }
        Json::Object(members) => {
            let entry = |(name, value)| (CelMapKey::from(name), json(value));
            Box::new(CelMap::from(members.into_iter().map(entry).collect::<HashMap<_, _>>()))
        }
    }
}
