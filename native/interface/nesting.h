int atoll_nests_within(const uint8_t *data, size_t size, uint32_t limit);
