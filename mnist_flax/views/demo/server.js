// Answers of the server of `mnist-flax demo`. It treats what it is sent as `mnist-flax predict` would: nothing is
// decided here.

const bytes = (base64) => base64 && Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

/** An error after which one may ask again, so many seconds later. */
const later = (sentence, seconds) => Object.assign(new Error(sentence), { again: seconds });

async function request(...what) {
  try {
    const response = await fetch(...what);
    return { response, content: await response.json() };
  } catch {
    throw later("The server does not answer. Is it still running? It is asked again until it does.", 2);
  }
}

globalThis.answers = {
  describe: async () => (await request("model")).content,
  async ask({ file, picture }, shown) {
    const body = file ?? (await picture.convertToBlob());
    const headers = { "Content-Type": body.type || "image/*" }; // some systems do not know HEIC
    const { response, content } = await request(`predict?shown=${shown}`, { method: "POST", body, headers });
    if ([429, 503].includes(response.status)) throw later("", response.headers.get("Retry-After") ?? 1);
    if (!response.ok) throw new Error(content.error);
    const maps = content.maps?.map((block) => ({ ...block, values: bytes(block.values) }));
    return { ...content, pixels: bytes(content.pixels), maps };
  },
};
