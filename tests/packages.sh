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

quicker=""
command -v chromium-headless-shell >/dev/null 2>&1 || quicker="chromium-headless-shell"

[ -z "$missing$quicker" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing$missing $quicker"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null
    install() { apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
    # The tests that drive Chromium need less CPU with it, and some releases of Debian have no such package.
    [ -z "$quicker" ] || install "$quicker" 2>&1 || echo "without $quicker, the tests of the page take longer"
    # shellcheck disable=SC2086  # a list of names
    if [ -z "$missing" ] || install $missing; then
        exit 0
    fi
fi
[ -z "$missing" ] || echo "not installed, so what needs it is skipped:$missing"
