# Sourced by `integration/campaign --self-test`: plants five bugs in a copy of the workspace and
# runs short campaigns on it, which must fail with each and pass with none.
#
# The bugs are patches beside this file. All are built in at once, and `DACAPO_PLANTED` chooses one
# when the program runs; nothing outside of the copy knows that variable.

planted=$target/planted
patches=integration/campaign.d

# Each bug with the kinds of faults that show it, how many, and the words of the ledger.
bugs() {
  cat <<'TABLE'
put-twice               cut            2   one segment put under several names
return-as-confirmed     queue-unbound  1   lost: selected and never at the target
ack-before-put          killed         16  lost: published and not in the archive
checkpoint-past-confirm killed         8   up to a checkpoint and not at the target|a checkpoint says
skip-at-resume          killed         8   selected and never at the target|the receipt says
TABLE
}

plant() {
  rm -rf "$planted/workspace"
  mkdir -p "$planted/workspace"
  cp -r Cargo.toml Cargo.lock rust-toolchain.toml clippy.toml crates integration schemas docs \
    "$planted/workspace/"
  local patch
  for patch in "$patches"/*.patch; do
    if ! patch --quiet --strip 1 --fuzz 3 --directory "$planted/workspace" <"$patch"; then
      say "$patch no longer applies: make it again for the code as it is now"
      exit 1
    fi
  done
  say "building with five bugs"
  copy_dependencies
  cargo build --quiet --workspace --all-features --bin dacapo --test workspace \
    --manifest-path "$planted/workspace/Cargo.toml" --target-dir "$planted/target"
}

# Links what is built of other people's crates into a target directory of the copy's own. Ours are
# left out: Cargo would take the one for the other, because only their paths differ.
copy_dependencies() {
  rm -rf "$planted/target"
  mkdir -p "$planted/target/debug"
  cp -al "$target/debug/deps" "$target/debug/build" "$target/debug/.fingerprint" \
    "$planted/target/debug/"
  rm -rf "$planted"/target/debug/.fingerprint/dacapo-* "$planted"/target/debug/build/dacapo-*
  find "$planted/target/debug/deps" \( -name '*dacapo*' -o -name 'campaign-*' -o -name 'servers-*' \
    -o -name 'bench-*' -o -name 'workspace-*' -o -name 'services-*' \) -delete
}

# Runs a campaign on the copy, with its words in a file.
short() {
  local name=$1 status=0
  shift
  apart "$target/debug/campaign" --seed 1 --until-failure --binary "$planted/target/debug/dacapo" \
    --set "DACAPO_PLANTED=$name" "$@" >"$planted/$name.txt" || status=$?
  return "$status"
}

say "building"
build --quiet
plant
say "none planted: the campaign must pass"
if ! short none --faults 4 --only killed --only queue-unbound --only cut; then
  cat "$planted/none.txt"
  say "the campaign fails on a copy without a bug"
  exit 1
fi
while read -r name kind faults words; do
  status=0
  short "$name" --faults "$faults" --only "$kind" || status=$?
  if [ "$status" != 1 ] || ! grep -qE "$words" "$planted/$name.txt"; then
    cat "$planted/$name.txt"
    say "planted and not found: $name (status $status; it should have said: $words)"
    exit 1
  fi
  say "found $name: $(grep -E -m 1 "$words" "$planted/$name.txt" | cut -c 1-100)"
done < <(bugs)
say "all five planted bugs were found"
