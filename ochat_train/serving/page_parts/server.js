// Requests to the server that the page comes from.

class ServerError extends Error {
  constructor(message, status = 0) { super(message); this.status = status; }
}

const GONE = "The server cannot be reached. Is it still running?";
const BROKE_OFF = "The answer broke off: the connection ended before the answer did.";

/** The response of the server; throws ServerError with what it says, and asks for a key where one is needed. */
async function request(path, {body, signal} = {}) {
  const key = keptKey.read(), headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store"});
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(GONE);
  }
  if (response.ok) return response;
  let text = `The server answered ${response.status} ${response.statusText}`;
  try { text = (await response.json()).error.message || text; } catch { /* not in the shape of this API */ }
  const wait = response.headers.get("Retry-After");
  if (wait && /^\d+$/.test(wait)) text += `\nTry again in ${wait} s.`;
  if (response.status === 401) askForKey(key ? text : "");
  throw new ServerError(text, response.status);
}

/** The JSON documents of a stream of server-sent events, up to its `[DONE]`. Throws ServerError if that is missing. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const {done, value} = await reader.read().catch(error => { throw error.name === "AbortError" ? error : new ServerError(BROKE_OFF); });
      if (done) throw new ServerError(BROKE_OFF);
      const lines = (waiting + value).split("\n");
      waiting = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError(event.error.message ?? BROKE_OFF);
        yield event;
      }
    }
  } finally { reader.cancel().catch(() => {}); }
}
