#!/usr/bin/env bash
# grpcurl and a Go client with its stubs, into .cache/bin. Without Go nothing is made, and their tests say so.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v go >/dev/null; then
  echo "no go on PATH: grpcurl and the Go client are not tried"
  exit 0
fi
export GOBIN="$PWD/.cache/bin" PATH="$PWD/.cache/bin:$PATH"
mkdir -p "$GOBIN"
[ -x "$GOBIN/grpcurl" ] || go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
[ -x "$GOBIN/protoc-gen-go" ] || go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.6
[ -x "$GOBIN/protoc-gen-go-grpc" ] || go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
cd tests/conformance/go
module=dormouse.dev/conformance
place="Minference.proto=$module/inference"
../../../.venv/bin/python -m grpc_tools.protoc -I../../../proto \
  --go_out=. --go_opt=module=$module --go_opt="$place" \
  --go-grpc_out=. --go-grpc_opt=module=$module --go-grpc_opt="$place" inference.proto
go build -o "$GOBIN/conformance-go" .
