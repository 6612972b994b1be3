//! The columns of a segment and how each is written.

use std::ops::BitOr;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{ColumnPath, TypePtr};

/// The newest version of a segment that this code reads: that of outputs of compaction, whose rows
/// lack the repeats that were dropped. Readers refuse a higher one.
pub const FORMAT_VERSION: u32 = 2;

/// Parquet's own notation; docs/archive-format.md shows the same text.
pub(crate) const SCHEMA: &str = "
message dacapo_event {
  REQUIRED INT64 sequence;
  REQUIRED INT64 archived_at (TIMESTAMP(MICROS,true));
  REQUIRED INT64 time (TIMESTAMP(MICROS,true));
  REQUIRED BYTE_ARRAY id (STRING);
  REQUIRED BYTE_ARRAY type (STRING);
  OPTIONAL BYTE_ARRAY key (STRING);
  REQUIRED BYTE_ARRAY exchange (STRING);
  REQUIRED BYTE_ARRAY routing_key (STRING);
  OPTIONAL BYTE_ARRAY content_type (STRING);
  REQUIRED GROUP headers (MAP) {
    REPEATED GROUP key_value {
      REQUIRED BYTE_ARRAY key (STRING);
      OPTIONAL BYTE_ARRAY value (STRING);
    }
  }
  REQUIRED BYTE_ARRAY properties;
  REQUIRED BYTE_ARRAY body;
  REQUIRED INT32 checksum (INTEGER(32,false));
}";

/// The leaf columns, in the order of [`SCHEMA`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Column {
    Sequence,
    ArchivedAt,
    Time,
    Id,
    Type,
    Key,
    Exchange,
    RoutingKey,
    ContentType,
    HeaderKey,
    HeaderValue,
    Properties,
    Body,
    Checksum,
}

impl Column {
    pub(crate) const COUNT: usize = 14;

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// Which parts of an event a read fills in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnSet(u16);

impl ColumnSet {
    /// Nothing.
    pub const NONE: ColumnSet = ColumnSet(0);
    /// `sequence`.
    pub const SEQUENCE: ColumnSet = ColumnSet::of(Column::Sequence);
    /// `archived_at`.
    pub const ARCHIVED_AT: ColumnSet = ColumnSet::of(Column::ArchivedAt);
    /// `time`.
    pub const TIME: ColumnSet = ColumnSet::of(Column::Time);
    /// `id`.
    pub const ID: ColumnSet = ColumnSet::of(Column::Id);
    /// `kind`.
    pub const TYPE: ColumnSet = ColumnSet::of(Column::Type);
    /// `key`.
    pub const KEY: ColumnSet = ColumnSet::of(Column::Key);
    /// The exchange; its exact bytes need [`ColumnSet::PROPERTIES`] too.
    pub const EXCHANGE: ColumnSet = ColumnSet::of(Column::Exchange);
    /// The routing key; its exact bytes need [`ColumnSet::PROPERTIES`] too.
    pub const ROUTING_KEY: ColumnSet = ColumnSet::of(Column::RoutingKey);
    /// The basic properties with their headers.
    pub const PROPERTIES: ColumnSet = ColumnSet::of(Column::Properties);
    /// The body.
    pub const BODY: ColumnSet = ColumnSet::of(Column::Body);
    /// The checksum over all the rest; only meaningful together with it.
    const CHECKSUM: ColumnSet = ColumnSet::of(Column::Checksum);
    /// Everything but the body.
    pub const ATTRIBUTES: ColumnSet = ColumnSet(
        Self::SEQUENCE.0
            | Self::ARCHIVED_AT.0
            | Self::TIME.0
            | Self::ID.0
            | Self::TYPE.0
            | Self::KEY.0
            | Self::EXCHANGE.0
            | Self::ROUTING_KEY.0
            | Self::PROPERTIES.0,
    );
    /// Everything, checked against the checksum.
    pub const ALL: ColumnSet = ColumnSet(Self::ATTRIBUTES.0 | Self::BODY.0 | Self::CHECKSUM.0);

    const fn of(column: Column) -> Self {
        ColumnSet(1 << column.index())
    }

    pub(crate) const fn has(self, column: Column) -> bool {
        self.0 & Self::of(column).0 != 0
    }

    /// Returns those of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: ColumnSet) -> Self {
        ColumnSet(self.0 & !other.0)
    }

    /// Returns whether nothing is asked for.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for ColumnSet {
    type Output = ColumnSet;

    fn bitor(self, other: ColumnSet) -> ColumnSet {
        ColumnSet(self.0 | other.0)
    }
}

pub(crate) fn schema() -> TypePtr {
    Arc::new(parse_message_type(SCHEMA).expect("the schema is fixed text that parses"))
}

/// A page of bodies: small enough that one wanted event costs little, large enough to compress.
/// At 4 KB an event this is 32 of them.
pub(crate) const BODY_PAGE_BYTES: usize = 128 * 1024;

/// Rows in a page of the other columns, for the same reason.
pub(crate) const PAGE_ROWS: usize = 1_024;

pub(crate) fn writer_properties() -> WriterProperties {
    let path = |parts: &[&str]| {
        ColumnPath::from(parts.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let level = ZstdLevel::try_new(3).expect("zstd has a level 3");
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("dacapo ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        .set_bloom_filter_for_dictionary_encoded_chunks(true)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_column_data_page_size_limit(path(&["body"]), BODY_PAGE_BYTES);
    for unique in ["id", "properties", "body", "checksum"] {
        properties = properties.set_column_dictionary_enabled(path(&[unique]), false);
    }
    for opaque in [
        path(&["properties"]),
        path(&["body"]),
        path(&["checksum"]),
        path(&["headers", "key_value", "key"]),
        path(&["headers", "key_value", "value"]),
    ] {
        properties = properties.set_column_statistics_enabled(opaque, EnabledStatistics::None);
    }
    for sought in ["id", "key"] {
        /// One wrong row group in a hundred is cheaper than a larger filter.
        const FALSE_POSITIVES: f64 = 0.01;
        properties = properties
            .set_column_bloom_filter_enabled(path(&[sought]), true)
            .set_column_bloom_filter_fpp(path(&[sought]), FALSE_POSITIVES);
    }
    properties.build()
}
