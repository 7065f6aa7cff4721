"""A session between a device and the server, without IO: bytes and times in, bytes, events and deadlines out.

Device (the durable queue is the owner's; everything in one task or under one lock):

    client = ClientSession()
    client.hello(Hello(protocol=1, device_id=..., token=..., epoch=queue.epoch, oldest_sequence=queue.oldest,
                       next_sequence=queue.next), now_ms)           # on every new transport
    loop:
        client.receive(message, now_ms)                             # one WebSocket message = one frame; without
                                                                    # borders receive_stream, and receive_datagram
        client.tick(now_ms)                                         # at client.next_deadline_ms(), early is fine
        for event in client.events():
            Opened          queue.delete_through(event.feed_from - 1)
            Acked           queue.delete_through(event.through); link.on_ack(event, event.now_ms)
            RoundTrip       link.on_rtt(event.rtt_ms, event.now_ms)
            MessageReceived Result | Gmm | Prototypes | Policy | Revision | WeightsRequest | Throttle | Error, not fatal
            MediaReceived   a WEIGHTS chunk
            Missed          results that did not come; the server's store will send them again
            Closed          flush bytes_to_send, close the transport; connect again only if event.retry
        while client.credit(now_ms) and queue.has(client.next_sequence):
            client.send_window(FrameType.EMBEDDING, client.next_sequence, capture_ms, payload)
        while batch := client.bytes_to_send(limit_bytes=32768, now_ms=now_ms):
            for data in batch: await transport.send(data)  # link.on_sent(numbered_sequence(data), len(data), now_ms)
    client.disconnected(now_ms)                                     # transport gone: later hello(...) again

Server (one fresh ServerSession per transport):

    session = ServerSession(now_ms, settings)
    session.receive(message, now_ms); session.tick(now_ms)
        HelloReceived   check the token, then one of
                          old.resume(session, now_ms), session = old    if old.can_resume(event.hello, now_ms)
                          session.accept(now_ms, session_id=..., resume_token=..., received_through=store.through(...))
                          session.reject("bad_token", "...")
                        then, and after Acked or ReplayDropped, the results that the device lacks:
                          for sequence in session.results_wanted(): session.send(store.result(sequence))
        WindowReceived  in order, once; compute, store, then session.acknowledge(sequence, now_ms) and
                        session.send(Result(...))
        MessageReceived Stats | Revision | WeightsRequest | Error (not fatal);   MediaReceived: a WEIGHTS chunk
        Acked           the device has those results: room for more;   ReplayDropped: only the store has these now
        Closed          flush bytes_to_send, close the transport; keep the session if session.state is DETACHED
    session.disconnected(now_ms, connection)                        # keep it; tick() closes it at next_deadline_ms()

A weight transfer is fed chunk by chunk while `queued_bytes(Priority.BULK)` is 0 and its window (weights.pacing) has
room: send_media(FrameType.WEIGHTS, chunk, flags=FrameFlag.FINAL on the last one), at most MAX_CHUNK_BYTES each. The
receiver answers each chunk by WeightsRequest with the offset reached.
"""

from __future__ import annotations

from streamsplit.wire.client import ClientSession
from streamsplit.wire.limits import CLIENT_SETTINGS, SessionSettings
from streamsplit.wire.server import ServerSession
from streamsplit.wire.states import ClientState, ServerState

__all__ = ["CLIENT_SETTINGS", "ClientSession", "ClientState", "ServerSession", "ServerState", "SessionSettings"]
