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
return-as-confirmed     queue-deleted  2   lost: selected and never at the target
ack-before-put          killed         16  lost: published and not in the archive
checkpoint-past-confirm killed         8   selected and never at the target|the receipt says
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
  # In the same target directory, because all dependencies are built there; the program itself is
  # then taken away, and ours put back.
  CARGO_TARGET_DIR=$(realpath "$target") build --quiet --manifest-path "$planted/workspace/Cargo.toml"
  mv "$target/debug/dacapo" "$planted/dacapo"
  build --quiet
}

# Runs a campaign on the copy, with its words in a file.
short() {
  local name=$1 status=0
  shift
  apart "$target/debug/campaign" --seed 1 --until-failure --binary "$planted/dacapo" \
    --set "DACAPO_PLANTED=$name" "$@" >"$planted/$name.txt" || status=$?
  return "$status"
}

mkdir -p "$target/debug"
plant
say "none planted: the campaign must pass"
if ! short none --faults 4 --only killed --only queue-deleted --only cut; then
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
