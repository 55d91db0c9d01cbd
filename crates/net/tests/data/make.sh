#!/bin/sh
# Makes the certificates of these tests, valid for a century. Their keys guard nothing.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
names="subjectAltName=DNS:localhost,IP:127.0.0.1"
# shellcheck disable=SC2086  # $key is several words
openssl req -x509 $key -keyout self-signed.key -out self-signed.pem -days 36500 \
    -subj /CN=keyheat-test -addext "$names"
openssl req -x509 $key -keyout "$work/root.key" -out "$work/root.pem" -days 36500 -subj /CN=keyheat-test-root
openssl req $key -keyout "$work/issuer.key" -out "$work/issuer.csr" -subj /CN=keyheat-test-issuer
printf 'basicConstraints=critical,CA:TRUE\n' > "$work/issuer.ext"
openssl x509 -req -in "$work/issuer.csr" -CA "$work/root.pem" -CAkey "$work/root.key" -CAcreateserial \
    -days 36500 -extfile "$work/issuer.ext" -out "$work/issuer.pem"
openssl req $key -keyout "$work/leaf.key" -out "$work/leaf.csr" -subj /CN=keyheat-test-leaf
printf '%s\n' "$names" > "$work/leaf.ext"
openssl x509 -req -in "$work/leaf.csr" -CA "$work/issuer.pem" -CAkey "$work/issuer.key" -CAcreateserial \
    -days 36500 -extfile "$work/leaf.ext" -out "$work/leaf.pem"
cat "$work/leaf.pem" "$work/issuer.pem" "$work/root.pem" > chain.pem
