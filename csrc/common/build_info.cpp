// Lets the loader ask a library which sources it was built from, before it trusts it.
#ifndef FSSOPS_SOURCE_HASH
#error "build_info.cpp needs FSSOPS_SOURCE_HASH; see build_backend/native_build.py"
#endif

extern "C" __attribute__((visibility("default"))) const char* fssops_source_hash() { return FSSOPS_SOURCE_HASH; }
