#!/bin/sh
# Makes the root file system of the image: rootfs.sh PROGRAM FOLDER. Called by deploy/Dockerfile.
set -eu

program=$1
root=$2
rm -rf "$root"
install -D -m 0755 "$program" "$root/usr/bin/tidelog"

# The libraries that it loads, at the paths at which the loader looks for them.
ldd "$program" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | sort -u |
    while read -r library; do
        install -D -m 0755 "$library" "$root$library"
    done

install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
printf '%s\n' 'root:x:0:0:root:/:/sbin/nologin' 'tidelog:x:65532:65532:tidelog:/var/lib/tidelog:/sbin/nologin' \
    >"$root/etc/passwd"
printf 'root:x:0:\ntidelog:x:65532:\n' >"$root/etc/group"
# Where the configuration is mounted, and where it writes: a volume that is made from these folders has their owner.
install -d -m 0755 "$root/etc/tidelog"
state=$root/var/lib/tidelog
install -d -m 0750 -o 65532 -g 65532 "$state" "$state/archive" "$state/spool"
install -d -m 1777 "$root/tmp"

# Every file as old as the source.
find "$root" -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH:-0}" {} +
