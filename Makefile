# The words that newcomers and packagers type. What they do is in cargo, packaging/ and tests/.

PREFIX ?= /usr/local
export DESTDIR PREFIX

.PHONY: all demo test test-packages test-kernels vm bench docs notebooks install deb rpm static

all:
	packaging/install-deps build
	cargo build --release --workspace

demo: all
	packaging/demo target/release

test:
	packaging/install-deps test
	cargo fmt --all --check
	clang-format --dry-run --Werror bpf/*.c bpf/*.h
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --test linux-guests -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	mandoc -T lint -W warning man/*.8
	tests/check-rebuild
	cargo test --workspace
	$(MAKE) test-packages
	$(MAKE) test-kernels

test-packages:
	packaging/install-deps packages
	packaging/install-deps vm
	tests/packages/run

test-kernels:
	packaging/install-deps vm
	tests/vm/test
	tests/vm/static

vm:
	packaging/install-deps vm
	tests/vm/shell $(KERNEL)

bench:
	packaging/install-deps bench
	packaging/install-deps vm
	cargo build --release --workspace
	cargo bench --bench runqlat --bench kvmexits --bench vcpulag --bench ksmstat
	cargo bench -p loadgen --bench creation
	tests/vm/bench

docs:
	packaging/install-deps build
	UPDATE_DOCS=1 cargo test --workspace --no-fail-fast --bins page_and_completions

notebooks: all
	rm -rf packaging/notebooks/data
	packaging/notebooks/record target/release packaging/notebooks/data

install:
	cargo build --release --workspace
	packaging/install target/release

deb:
	packaging/install-deps deb
	packaging/build
	packaging/deb dist --dbgsym

static:
	packaging/install-deps build
	packaging/static

rpm:
	packaging/install-deps rpm
	packaging/build
	packaging/rpm target/dist
