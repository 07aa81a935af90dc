// Says which sources a library was built from, in its file: the loader must know before it opens a library, because
// what one has registered with torch no other can register again.
#ifndef FSSOPS_SOURCE_HASH
#error "build_info.cpp needs FSSOPS_SOURCE_HASH; see build_backend/native_build.py"
#endif

extern "C" {
extern __attribute__((visibility("default"))) const char fssops_source_hash[];
const char fssops_source_hash[] = "fssops-source-hash:" FSSOPS_SOURCE_HASH;
}
