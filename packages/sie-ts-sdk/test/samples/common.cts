// From CommonJS, with types.
import sie = require("@superlinked/sie-sdk");

async function main(): Promise<void> {
  const client = new sie.SIEClient("http://localhost:8080");
  const info: sie.ModelInfo = await client.getModel("sie/mini-en");
  await client.getModel("no/model").catch((error: unknown) => {
    console.log(`${info.name} ${error instanceof sie.ModelNotFoundError} ${sie.VERSION}`);
  });
  await client.close();
}

void main();
