class PerMessageDeflate:
    max_message_size: int
    def __init__(
        self,
        is_server: bool,
        server_no_context_takeover: bool,
        client_no_context_takeover: bool,
        server_max_window_bits: int,
        client_max_window_bits: int,
        mem_level: int | None,
        max_message_size: int | None = None,
    ) -> None: ...
    def start_decompress_message(self) -> None: ...
    def decompress_message_data(self, data: bytes, max_output_len: int | None = None) -> bytes: ...
    def end_decompress_message(self) -> None: ...
