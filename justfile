# `just` lists what there is. Recipes call what CI calls.

_default:
    @just --list

# Whether it compiles, cheaply
check:
    cargo check --workspace --all-targets --all-features

# Every test, against real servers that it installs and starts
test *ARGS:
    ./integration/test {{ ARGS }}

# A thousand seeded faults against real servers, for an hour or more; --seed and --faults are its own
campaign *ARGS:
    ./integration/campaign --faults 1000 {{ ARGS }}

# Whether the campaign finds bugs that are planted in a copy of the workspace
self-test:
    ./integration/campaign --self-test

# The gate, as CI runs it
ci:
    ./.ci/run

# The whole story on this machine, nothing to install
demo *ARGS:
    cargo run --release -- demo {{ ARGS }}

# Writes the Rust code of schemas/*.proto
schemas:
    DACAPO_WRITE_GENERATED=1 cargo test -p dacapo-integration --no-default-features --test workspace generated

# Makes the next release of schemas/: descriptor set and generated code; refuses what breaks the last
schema-release:
    DACAPO_RELEASE_SCHEMAS=1 cargo test -p dacapo-integration --no-default-features --test workspace nothing_that_was_released

# Writes formatting
fmt:
    cargo fmt --all

# A shell with private servers running; their addresses are in its environment
servers:
    cargo build -p dacapo-integration --no-default-features --bin servers
    target/debug/servers bash

# Whether ten times 1 GB takes more memory than 1 GB, of a release build; needs 40 GB of disk
memory:
    cargo build --release -p dacapo-cli
    DACAPO_TEST_BIN="$PWD/target/release/dacapo" DACAPO_TEST_MEMORY_BYTES=1000000000 \
      ./integration/test --test services -- --test-threads 1 --nocapture tenfold

# What it costs beside the leanest client, in pairs (--runs N); prints a table and writes
# target/bench/report.json
bench *ARGS:
    cargo build --release -p dacapo-cli -p dacapo-integration --bins
    target/release/servers target/release/bench {{ ARGS }}
