#!/bin/sh
# Turns the archive mmdebstrap made into the ext4 file system of a disk's partition, without mounting anything.
# Run as root or under fakeroot, so that owners and devices of the archive survive.
# Arguments: archive, folder with the recipe's files, scratch folder, disk, label, UUID, where the partition begins in
# bytes, its size in blocks, size of a block in bytes.
set -eu
archive=$1 files=$2 root=$3 image=$4 label=$5 uuid=$6 offset=$7 blocks=$8 block=$9

mkdir -p "$root"
tar --extract --file "$archive" --directory "$root" --numeric-owner --preserve-permissions
cp -r "$files/." "$root/"
(cd "$files" && find . -type f) | while read -r file; do chown 0:0 "$root/$file"; done

# Root's password is `daruma`, hashed with a fixed salt so that two builds give the same bytes.
sed -i 's|^root:[^:]*:|root:$6$daruma$svkmawOpgpIKZ7H7kipibAnobG5FQs7DwO.J2E8lbgT4J/t0tnSOKt8YSYPcgQKcqUpnn.TghgwBZBvZWwlEK.:|' \
    "$root/etc/shadow"

# Empty: systemd writes an identity of its own at the first start, without the long work of a "first boot".
: > "$root/etc/machine-id"

# Nothing here to see on a screen, to update by the clock, or to trim.
for unit in getty@tty1.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# What `systemctl enable daruma-agent` would do.
ln -s ../daruma-agent.service "$root/etc/systemd/system/multi-user.target.wants/daruma-agent.service"

# These say that systemd has seen this /usr: without them its first start would rebuild caches that are up to date.
touch "$root/etc/.updated" "$root/var/.updated"

find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
mke2fs -q -F -t ext4 -L "$label" -U "$uuid" -m 1 -b "$block" -d "$root" \
    -E "offset=$offset,hash_seed=$uuid,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0" "$image" "$blocks"
