// The baseline of the push figures by Node's firebase-admin: `node firebase_sender.js MODULES URL PROJECT TOKEN COUNT` sends with
// sendEach in batches of 500, and prints messages per second and microseconds of CPU per message as JSON. The SDK has no
// option for its host: its HTTP/2 sessions are led to URL.
const [modules, url, projectId, token, count] = process.argv.slice(2);
const http2 = require("node:http2");
const connect = http2.connect;
http2.connect = (_authority, options) => connect(url, options);
const admin = require(require.resolve("firebase-admin", { paths: [modules] }));

const credential = { getAccessToken: async () => ({ access_token: token, expires_in: 3600 }) };
admin.initializeApp({ projectId, credential });

async function send(size, name) {
  const notification = { title: "Anna", body: "is reading page 12 with you" };
  const messages = [];
  for (let n = 0; n < size; n++) messages.push({ token: `token-of-user-${String(n).padStart(5, "0")}-${name}`, notification });
  const answer = await admin.messaging().sendEach(messages);
  if (answer.failureCount) throw answer.responses.find((one) => one.error).error;
}

(async () => {
  await send(20, "warm");
  const before = process.cpuUsage();
  const started = process.hrtime.bigint();
  for (let at = 0; at < count; at += 500) await send(Math.min(500, count - at), String(at));
  const seconds = Number(process.hrtime.bigint() - started) / 1e9;
  const used = process.cpuUsage(before);
  console.log(JSON.stringify({ per_s: count / seconds, cpu_us: (used.user + used.system) / count }));
  process.exit(0);
})();
