// A token endpoint: node server.mjs HTTP_PORT HTTPS_PORT KEY CERTIFICATE. One client may ask for tokens, which are good for a few
// seconds and for the audience `kafka`; their public keys are at /jwks. Prints a line for each token that it gives or refuses. The
// packages lie in the rig's cache (RIG_PAGE), not beside this file.
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { Provider } = await import(pathToFileURL(join(process.env.RIG_PAGE, "node_modules/oidc-provider/lib/index.js")));
const [http, https, key, certificate] = process.argv.slice(2);
const GOOD_FOR_SECONDS = 8;

const provider = new Provider(`http://127.0.0.1:${http}`, {
  clients: [{
    client_id: "archiver",
    client_secret: "a secret, of course",
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
  }],
  ttl: { ClientCredentials: GOOD_FOR_SECONDS },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => "urn:kafka",
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({ scope: "archive", audience: "kafka", accessTokenFormat: "jwt", accessTokenTTL: GOOD_FOR_SECONDS }),
    },
  },
});
provider.on("grant.success", () => console.log("gave a token"));
provider.on("grant.error", (_, error) => console.log(`refused a token: ${error.message}`));
createServer({ key: readFileSync(key), cert: readFileSync(certificate) }, provider.callback()).listen(Number(https), "127.0.0.1");
provider.listen(Number(http), "127.0.0.1", () => console.log("listening"));
