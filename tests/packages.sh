#!/bin/sh
# Debian packages that the tests use: installed by name where this runs as root, named as skipped where it does not.
set -u

missing=""
need() { # a command, the package that has it
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need curl curl
need openssl openssl
need node nodejs
need npm npm
need chromium chromium
need chromedriver chromium-driver
need redis-server redis-server
need nginx nginx
need caddy caddy

[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of names
    if apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends $missing >/dev/null; then
        exit 0
    fi
fi
echo "not installed, so what needs it is skipped:$missing"
